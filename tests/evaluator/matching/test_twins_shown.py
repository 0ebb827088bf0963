"""Twins where people see them: a latent in the terminal, its splitting tree, the static page, and the commands that make them."""

import json
from pathlib import Path

import pytest
import torch
from support import written_evidence
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.evaluator.latent_page.write import write_page
from scopemill.evaluator.matching.twins import twins_of
from scopemill.proto.errors import InputError, MissingObject
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import write_finished
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae

HOOK, D, WIDTHS = "blocks.2.hook_resid_post", 192, (8, 16, 32)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """SAEs of three widths: latent i of one is latents 2i and 2i + 1 of the next, turned a little."""
    url = str(tmp_path_factory.mktemp("bucket"))
    generator = torch.Generator().manual_seed(0)
    rows, made = torch.nn.functional.normalize(torch.randn(WIDTHS[0], D, generator=generator), dim=1), []
    for width in WIDTHS:
        sae = Sae(Shape.square(D), width, TopK(width, 4))
        with torch.no_grad():
            sae.W_dec.copy_(rows)
            sae.W_enc.copy_(rows)
        made.append(f"{url}/saes/m/{HOOK}/width_{width}/topk/4-aa")
        write_finished(made[-1], "saelens", FinishedSae(sae.requires_grad_(False), (HOOK,), (HOOK,), "gemma-2-stdlib"))
        noise = torch.nn.functional.normalize(torch.randn(2 * width, D, generator=generator), dim=1)
        rows = torch.nn.functional.normalize(rows.repeat_interleave(2, dim=0) + 0.3 * noise, dim=1)
    return made


@pytest.fixture(scope="module")
def compared(folders, model, tmp_path_factory) -> dict:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(f"def f{i}(self, x):\n    return x + {i}\n" for i in range(60)))
    options = ["--model", model.name, "--corpus", str(text), "--format", "files", "--context-length", "32", "--rows", "500", "--json"]
    return json.loads(run("match", *folders, *options))


def test_folders_are_matched_each_with_each(folders, compared):
    axes = [pair["axes"] for pair in compared["pairs"]]  # the widest fires more often than the narrowest
    assert axes == [["width"], ["width", "sparsity"], ["width"]] and compared["stability"] == {}
    for pair in compared["pairs"]:
        assert pair["forth"]["mean_max_cosine"] > 0.85 and pair["forth"]["mean_max_cosine"] > pair["forth"]["random_mean_max_cosine"]
        assert pair["forth"]["mean_max_phi"] > 0.1, "they fire together"
    assert len(list(Path(folders[0], "evidence/twins").glob("*.parquet"))) == 2


def test_a_latent_splits_into_a_tree(folders, compared):
    tree = json.loads(run("splits", folders[0], "3", "--json"))
    assert [child["latent"] for child in sorted(tree["children"], key=lambda child: child["latent"])] == [6, 7]
    for child in tree["children"]:
        assert 0.9 < child["score"] < 1 and {c["latent"] for c in child["children"]} == {2 * child["latent"], 2 * child["latent"] + 1}
        assert all(c["sae"].endswith("width_32/topk/4-aa") for c in child["children"])
    shown = run("splits", folders[0], "3")
    assert f"latent 3 of m/{HOOK}/width_8" in shown and "latent 13 of" in shown
    assert json.loads(run("splits", folders[0], "3", "--json", "--least", "0.999"))["children"] == []
    with pytest.raises(InputError, match="latents 0 to 7"):
        run("splits", folders[0], "8")
    with pytest.raises(MissingObject, match="was not matched with a wider SAE yet"):
        run("splits", folders[2], "0")


def test_a_latent_and_the_page_name_its_twins(folders, compared, tmp_path):
    bucket, root = Bucket(folders[0].partition("/saes/")[0]), f"saes/{folders[0].partition('/saes/')[2]}"
    evidence = written_evidence.write(bucket, root, width=WIDTHS[0])
    twins = twins_of(evidence)
    assert [one.record.other_width for one in sorted(twins, key=lambda one: one.record.other_width)] == [16, 32]
    facts = json.loads(run("latent", folders[0], "3", "--json"))
    assert {one["nearest"][0]["latent"] for one in facts["twins"] if one["sae"].endswith("width_16/topk/4-aa")} <= {6, 7}
    shown = run("latent", folders[0], "3")
    assert f"twins in m/{HOOK}/width_16/topk/4-aa (width): cosine " in shown and "splits into" in shown
    write_page(Bucket(str(tmp_path)), [("one", evidence)])
    text = (tmp_path / "data/0/latents-00000.js").read_text()
    chunk = json.loads("[" + text[text.index("(") + 1 : text.rindex(")")] + "]")[2]
    on_page = next(one for one in chunk[3]["twins"] if "width_16" in one["title"])
    assert {latent for latent, _ in on_page["children"]} == {6, 7} and on_page["sae"] is None and on_page["phi"]


def test_matching_by_decoders_alone_needs_no_model(folders, compared, tmp_path):
    found = json.loads(run("match", *folders[1:], "--json"))
    (pair,) = found["pairs"]
    assert pair["back"]["mean_max_cosine"] > 0.85 and pair["back"]["mean_max_phi"] != pair["back"]["mean_max_phi"], "phi is unknown"
    with pytest.raises(InputError, match="at least two SAEs"):
        run("match", folders[0], folders[0])
    with pytest.raises(InputError, match="--corpus needs --model"):
        run("match", *folders[:2], "--corpus", "text.txt")


def test_seeds_give_a_figure_of_stability(folders, tmp_path):
    """The same rows in another order are found again, and of random ones none."""
    generator = torch.Generator().manual_seed(3)
    rows, places = torch.nn.functional.normalize(torch.randn(64, D, generator=generator), dim=1), []
    for seed in (0, 1):
        sae = Sae(Shape.square(D), 64, TopK(64, 4))
        with torch.no_grad():
            sae.W_dec.copy_(rows[torch.randperm(64, generator=generator)] if seed else rows)
        places.append(f"{tmp_path}/saes/{seed}")
        write_finished(places[-1], "saelens", FinishedSae(sae.requires_grad_(False), (HOOK,), (HOOK,), "m"))
        recipe = {"seed": seed, "sparsity": 4, "learning_rate": 1e-3, "width": 64}
        Bucket(places[-1]).write("provenance.json", json.dumps({"sae": recipe}).encode())
    found = json.loads(run("match", *places, "--json"))
    assert [pair["axes"] for pair in found["pairs"]] == [["seed"]]
    for figures in found["stability"].values():
        assert figures["mean_max_cosine"] == pytest.approx(1) and figures["share_alike"] == figures["mutual"] == 1 and figures["seeds"] == 2
        assert figures["random_mean_max_cosine"] < 0.6 and figures["random_share_alike"] < 0.2
    assert "stability over 2 seeds: 1.000 mean max cosine" in run("match", *places)
