"""The interpretation report of an SAE, number by number, and as people read it."""

import json
import math
import re
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from support.exported import labelled
from support.finished_saes import F, finished_sae
from typer.testing import CliRunner

from scopemill.deploy.catalog.interpretation import interpretation
from scopemill.deploy.catalog.interpretation_text import markdown
from scopemill.deploy.cli.main import app
from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.evaluator.probes.scores import RANDOM_DECODER, RANDOM_ENCODER, RESIDUAL, SAE, ProbeScore
from scopemill.proto.errors import MissingObject
from scopemill.proto.storage.bucket import Bucket

PROBES = tuple(
    ProbeScore("task", owner, k, auc, 0.8, 100)
    for owner, k, auc in ((SAE, 1, 0.9), (RANDOM_DECODER, 1, 0.6), (RANDOM_ENCODER, 1, 0.7), (RESIDUAL, 0, 0.95))
)
RESULT = Result("blocks.3.hook_resid_post", 3, "resid_post", "jumprelu", F, 0.5, 10, 1000, 4.5, 0.2, 0.1, 3.0, 3.2, 10.0, 6.0, 0.2, 0.97,
                0.93, "saes/x")  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """An SAE of which everything is known."""
    folder = tmp_path_factory.mktemp("saes") / "saes" / "tiny" / "a"
    subject = labelled(folder, finished_sae("jumprelu", model="tiny"))
    bucket = Bucket(str(folder))
    bucket.write("metrics.json", Evaluation(RESULT, Histogram([-1.0, 0.0], [F], 0), 4096, {}, probes=PROBES).to_record())
    bucket.write("provenance.json", json.dumps({"sweep": "s", "sae": {"tokens": 1000, "seed": 0, "activation": None}}).encode())
    out = pa.BufferOutputStream()
    scores = [{"latent": i, "output_score": i / F, "output_score_random": 0.5} for i in range(F) if i % 5 != 4]
    parquet.write_table(pa.Table.from_pylist(scores), out)
    bucket.write(f"{subject.evidence.layout.root}/output_scores.parquet", out.getvalue().to_pybytes())
    return subject


@pytest.fixture(scope="module")
def report(known):
    return interpretation(known.folder, 5, 2)


def test_latents_are_counted_and_sorted_as_the_evidence_has_them(known, report):
    rows = known.evidence.latents().to_pylist()
    alive = [row for row in rows if row["fired"]]
    assert report["latents"]["alive"] == len(alive) == 24 and report["latents"]["dead_share"] == pytest.approx(0.2)
    histogram = report["latents"]["density_histogram"]
    assert sum(bin["latents"] for bin in histogram) == len(alive)
    for bin in histogram:
        assert bin["latents"] == sum(bin["from"] <= row["density"] < bin["to"] for row in alive)
    by_density = sorted(alive, key=lambda row: (-row["density"], row["latent"]))
    assert report["sorts"]["density"] == [row["latent"] for row in by_density[:5]]
    assert report["sorts"]["output_score"] == [28, 27, 26, 25, 23] and report["sorts"]["label_score"] == [1]
    often = [row for row in alive if row["fired"] >= 10]
    assert report["sorts"]["rare"] == [row["latent"] for row in sorted(often, key=lambda row: (row["density"], row["latent"]))[:5]]
    sizes = Counter(row["cluster"] for row in rows)
    assert report["latents"]["clusters"] == sum(size > 1 for size in sizes.values())


def test_scores_stand_beside_their_control(report):
    scores = [i / F for i in range(F) if i % 5 != 4]
    output = report["output_scores"]
    assert output["latents"] == 24 and output["mean_score"] == pytest.approx(sum(scores) / 24) and output["mean_random"] == 0.5
    assert output["above_random"] == sum(score > 0.5 for score in scores) / 24
    assert report["labels"] == {"latents": 1, "share": 1 / F, "scored": 1, "mean_score": 0.75}
    assert report["quality"]["probes"]["auc"][1] == {SAE: 0.9, RANDOM_DECODER: 0.6, RANDOM_ENCODER: 0.7}
    assert report["training"] == {"sweep": "s", "tokens": 1000, "seed": 0} and report["quality"]["fvu"] == 0.2


def test_each_listed_latent_is_shown_with_its_top_contexts(known, report):
    assert set(report["shown"]) == {latent for listed in report["sorts"].values() for latent in listed}
    for latent, shown in report["shown"].items():
        tops = [example.value for example in known.evidence.examples(latent)][:2]
        assert [context["activation"] for context in shown["contexts"]] == tops


def test_the_text_has_every_part_and_every_number_of_its_tables(report):
    text = markdown(report)
    for title in ("Identity", "Training", "Quality", "Probes", "Latents", "Density", "Largest output score", "Contexts", "Caveats"):
        assert f"\n## {title}\n" in text
    assert "| FVU | 0.2 |" in text and "| dead share | 0.2 |" in text and "of a random direction 0.500" in text
    assert "| 1 | 0.900 | 0.600 | 0.700 |" in text
    assert all(f"### Latent {latent}" in text for latent in report["shown"])
    assert text.count("\n### Latent 1: a ") == 1  # a label with line ends stays one line
    for one, other in pairwise(text.split("\n")):  # the rows of a table have as many cells as its head, whatever stands in them
        if one.startswith("|") and other.startswith("|"):
            assert len(re.split(r"(?<!\\)\|", one)) == len(re.split(r"(?<!\\)\|", other)), other


def test_what_is_not_known_is_said(tmp_path):
    subject = labelled(tmp_path / "a", finished_sae("clt", model="tiny"))
    report = interpretation(subject.folder, 3, 1)
    assert report["quality"] == {} and report["output_scores"] == {}
    caveats = " ".join(report["caveats"])
    for fact in ("no metrics.json", "Output scores were not measured", "100,000 rows", "bfloat16"):
        assert fact in caveats
    text = markdown(report)
    assert "Not measured." in text and "- output scores: not measured" in text and "Nothing is known of it." in text


def test_the_command_writes_both_files(known, tmp_path):
    done = CliRunner().invoke(app, ["report", known.folder, "--out", str(tmp_path / "r"), "--most", "5", "--contexts", "2"])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "r/interpretation.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written["identity"]["latents"] == F and math.isclose(written["quality"]["delta_loss"], 0.2)
    assert (tmp_path / "r/interpretation.md").read_text() == markdown(interpretation(known.folder, 5, 2))


def test_an_sae_without_evidence_is_one_sentence(tmp_path):
    with pytest.raises(MissingObject, match="scopemill evidence"):
        interpretation(str(tmp_path), 3, 1)
