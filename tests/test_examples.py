"""The examples in docs/examples run as they are."""

import runpy
from pathlib import Path

import pytest
from support.finished_saes import finished_sae

from scopemill.trainer.formats import write_finished

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run(name: str, place: Path, capsys) -> str:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](str(place))
    return capsys.readouterr().out


def test_all_of_them_are_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"load_and_look", "train_in_memory", "sweep"}


@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
def test_load_and_look(tmp_path, capsys, kind):
    write_finished(str(tmp_path), "saelens", finished_sae(kind))
    told = run("load_and_look", tmp_path, capsys)
    assert f"Sae({kind} at blocks.3.hook_resid_post, 12 -> 30" in told and "nearest to latent" in told


def test_train_in_memory(tmp_path, capsys):
    told = run("train_in_memory", tmp_path / "sae", capsys)
    assert (tmp_path / "sae" / "cfg.json").exists() and float(told.rsplit("FVU ", 1)[1]) < 0.3


def test_a_sweep(tmp_path, capsys, ray_cluster):
    told = run("sweep", tmp_path, capsys)
    assert told.count("blocks.3.hook_resid_post jumprelu: L0 ") == told.count("Sae(jumprelu at blocks.3.hook_resid_post, 192 -> 256") == 2
    live = sorted((tmp_path / "bucket").glob("saes/*/*/*/*/*/live/00000.jsonl"))
    assert len(live) == 2 and all(len(path.read_text().splitlines()) == 3 for path in live)
