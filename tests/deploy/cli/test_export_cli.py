"""``scopemill export``: files of each tool from the command line, and one sentence where that cannot be."""

import json

import pytest
from support.exported import labelled, square_transcoders
from support.finished_saes import F, finished_sae
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.proto.errors import InputError, MissingObject
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import write_finished


@pytest.fixture(scope="module")
def saes(tmp_path_factory) -> list[str]:
    """Two SAEs of one hook, width and architecture, the first one evaluated."""
    folder = tmp_path_factory.mktemp("bucket") / "saes" / "tiny"
    made = [labelled(folder / name, finished_sae("jumprelu", model="tiny", seed=n), n).folder for n, name in enumerate(("0.5-a", "0.7-b"))]
    result = Result("blocks.3.hook_resid_post", 3, "resid_post", "jumprelu", F, 0.5, 10, 1000, 4.5, 0.2, 0.1, 3.0, 3.2, 10.0, 6.0, 0.2,
                    0.97, 0.93, "saes/x")  # fmt: skip
    Bucket(made[0]).write("metrics.json", Evaluation(result, Histogram([-1.0, 0.0], [F], 0), 4096, {}).to_record())
    return made


def run(*arguments: str):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_saes_of_one_set_become_sources_beside_each_other(saes, tmp_path):
    done = run(*saes, "--to", "saedashboard", "--out", tmp_path, "--set", "res-mine")
    assert done.exit_code == 0, done.output
    folders = {folder.name for folder in (tmp_path / "tiny").iterdir()}
    assert folders == {"3-res-mine__0_5-a", "3-res-mine__0_7-b"}
    assert all(f"tiny/{folder}" in done.output for folder in folders)


def test_saes_that_would_be_one_source_are_refused(saes, tmp_path):
    done = run(*saes, "--to", "neuronpedia", "--layers", "6", "--suffix", "same", "--out", tmp_path)
    assert isinstance(done.exception, InputError) and "would both be tiny/3-res-jumprelu-30__same" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_names_come_through_to_neuronpedias_lines(saes, tmp_path):
    done = run(
        saes[0], "--to", "neuronpedia", "--layers", "6", "--release", "paper", "--creator", "Me", "--link", "https://x", "--out", tmp_path
    )
    assert done.exit_code == 0, done.output
    release = json.loads((tmp_path / "tiny/3-res-jumprelu-30__0_5-a/release.jsonl").read_text())
    assert (release["name"], release["creatorName"], release["urls"]) == ("paper", "Me", ["https://x"])


def test_the_models_layers_are_read_from_its_configuration_or_asked_for(saes, tmp_path):
    done = run(saes[0], "--to", "neuronpedia", "--out", tmp_path)  # the evidence names a model that is nowhere
    assert isinstance(done.exception, InputError) and "--layers" in str(done.exception)


def test_circuit_tracer_gets_transcoders_without_evidence_too(tmp_path):
    transcoders = square_transcoders(2)
    labelled(tmp_path / "a", transcoders[0])
    write_finished(str(tmp_path / "b"), "saelens", transcoders[1])
    done = run(tmp_path / "a", tmp_path / "b", "--to", "circuit-tracer", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "1 of 2 SAEs have no evidence" in done.output
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    layers = {"layer_0.safetensors", "layer_1.safetensors"}
    assert found == layers | {"config.yaml", "features/index.json.gz", "features/layer_0.bin"}


def test_saebench_needs_an_evaluation_and_takes_evidence_if_there_is_some(saes, tmp_path):
    done = run(saes[0], "--to", "saebench", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    file = tmp_path / "core/tiny_0.5-a_custom_sae_eval_results.json"
    assert len(json.loads(file.read_text())["eval_result_details"]) == F
    assert isinstance((failed := run(saes[1], "--to", "saebench", "--out", tmp_path)).exception, InputError)
    assert "no metrics.json" in str(failed.exception)


def test_mistakes_are_one_sentence(saes, tmp_path):
    for arguments, kind, reason in (
        ((saes[0], "--to", "dashboards"), InputError, "choose from saedashboard"),
        ((saes[0], "--to", "saebench", "--upload", "https://x"), InputError, "--upload is for --to neuronpedia"),
        ((str(tmp_path), "--to", "saedashboard"), MissingObject, "scopemill evidence"),
        ((saes[0], "--to", "circuit-tracer"), InputError, "traces transcoders"),
    ):
        done = run(*arguments, "--out", tmp_path / "out")
        assert isinstance(done.exception, kind) and reason in str(done.exception)
