"""Output scores of all latents beside an SAE's evidence: kept, resumed, shown, and refused where they cannot be."""

import json

import numpy as np
import pytest
import torch
from support import written_evidence
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.evaluator.evidence.logits import readout
from scopemill.evaluator.evidence.reader import Evidence
from scopemill.evaluator.steering import all_scores
from scopemill.evaluator.steering.all_scores import score_latents
from scopemill.proto.errors import InputError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import FinishedSae, write_finished
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae

WIDTH, NAME = 20, "saes/tiny/resid"
LAST = "blocks.5.hook_resid_post"


@pytest.fixture(scope="module")
def evidence(tmp_path_factory, lm) -> Evidence:
    """An SAE after the last block: even latents write a token that no other is like, odd ones noise."""
    place = str(tmp_path_factory.mktemp("bucket"))
    sae = Sae(Shape.square(192), WIDTH, TopK(WIDTH, 4))
    out = readout(lm, [], 10**6)
    rows = torch.randn(WIDTH, 192, generator=torch.Generator().manual_seed(0))
    own = torch.nn.functional.normalize((out.unembedding - out.unembedding.mean(0)) / out.gain, dim=1)
    logits = out.logits(own)
    margin = logits.diagonal() - logits.clone().fill_diagonal_(-torch.inf).max(1).values
    rows[::2] = own[margin.topk(WIDTH // 2).indices]
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(rows, dim=1) * 200)
        sae.W_enc.copy_(sae.W_dec)
    write_finished(f"{place}/{NAME}", "saelens", FinishedSae(sae.requires_grad_(False), (LAST,), (LAST,)))
    return written_evidence.write(Bucket(place), NAME, width=WIDTH)


def test_scores_are_kept_beside_the_evidence_and_a_stopped_run_goes_on(evidence, model, monkeypatch):
    folder, blocks = evidence.bucket.place(NAME), []
    monkeypatch.setattr(all_scores, "BLOCK", 6)

    def stop(done: int, of: int) -> None:
        blocks.append((done, of))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_latents(evidence, folder, model, 20.0, stop)
    assert blocks == [(6, 16)] and len(evidence.output_scores()) == 6
    scores = score_latents(evidence, folder, model, 20.0, lambda done, of: blocks.append((done, of)))
    assert blocks[1:] == [(12, 16), (16, 16)] and scores == evidence.output_scores()
    assert set(scores) == {latent for latent in range(WIDTH) if latent % 5 != 4}, "latents that never fired have no score"
    again: list = []
    assert score_latents(evidence, folder, model, 20.0, lambda *given: again.append(given)) == scores and not again
    monkeypatch.setattr(all_scores, "BLOCK", 256)
    assert score_latents(evidence, folder, model, 19.0) != scores
    whole = score_latents(evidence, folder, model, 20.0)
    assert np.allclose([whole[latent] for latent in scores], list(scores.values()), rtol=1e-4), "blocks change nothing"


def test_a_latent_that_writes_a_token_scores_above_a_random_direction(evidence, model):
    scores = score_latents(evidence, evidence.bucket.place(NAME), model, 20.0)
    own = [scores[latent] for latent in scores if latent % 2 == 0]
    assert all(score > 0.3 and score > control for score, control in own), own
    assert all(0 <= value <= 1 for pair in scores.values() for value in pair)


def test_scores_are_listed_sorted_and_shown(evidence, model):
    folder = evidence.bucket.place(NAME)

    def run(*arguments: str) -> str:
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout

    told = run("evidence", folder, "--output-scores", "--model", model.name, "--amount", "20")
    scores = evidence.output_scores()
    better = sum(own > control for own, control in scores.values())
    assert f"{better} of {len(scores)} latents score above a random direction of their norm, {better / len(scores):.1%}" in told
    rows = json.loads(run("latents", folder, "--sort", "output_score", "--json"))
    assert [row["output_score"] for row in rows] == sorted((own for own, _ in scores.values()), reverse=True)
    assert rows[0]["output_score_random"] == scores[rows[0]["latent"]][1]
    assert "output score" in run("latents", folder) and f"output score: {scores[2][0]:.3f}" in run("latent", folder, "2")
    assert json.loads(run("latent", folder, "2", "--json"))["output_score"] == scores[2][0]
    run("page", folder, "--out", f"{evidence.bucket.url}/page")
    table = evidence.bucket.read("page/data/0/table.js").decode()
    assert f'"2":{float(f"{scores[2][0]:.4g}")}' in table[table.index('"output"') : table.index('"random"')]


def test_another_models_sae_is_refused(evidence, model, tmp_path):
    place = str(tmp_path / "wide")
    write_finished(place, "saelens", FinishedSae(Sae(Shape.square(64), WIDTH, TopK(WIDTH, 4)).requires_grad_(False), (LAST,), (LAST,)))
    with pytest.raises(InputError, match="64 columns"):
        score_latents(evidence, place, model)
