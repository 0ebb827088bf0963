"""Neuronpedia's bulk files as its importer takes them; `make test-interop` imports them into a PostgreSQL."""

import gzip
import json
import re
from pathlib import Path

import pytest
from support.exported import NASTY, subject

from scopemill.evaluator.exports import neuronpedia
from scopemill.evaluator.exports.names import Names
from scopemill.proto.errors import InputError
from scopemill.proto.storage.bucket import Bucket

NAMES = Names(layers=4, weights="me/my-saes/layer_3/a")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    of = subject(tmp_path_factory.mktemp("sae"))
    folder = tmp_path_factory.mktemp("out")
    (source,) = neuronpedia.write_neuronpedia(Bucket(str(folder)), of, NAMES, lambda done: None)
    return of, folder / source


def text_of(file: Path) -> str:
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode()


def imported(file: Path) -> list[dict]:
    """The rows as the importer has them: NULs replaced in the text, columns of the first line only."""
    text = text_of(file).replace("\\u0000", " ")
    rows = [json.loads(line) for line in text.strip().split("\n")]
    return [{name: row.get(name) for name in rows[0]} for row in rows]


def test_all_files_of_an_import_are_there(exported):
    _, folder = exported
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    kinds = {f"{kind}/batch-0.jsonl.gz" for kind in ("features", "activations", "explanations")}
    assert found == {"release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl"} | kinds


def test_every_line_has_the_columns_of_the_first(exported):
    _, folder = exported
    for file in folder.rglob("*.gz"):
        lines = [json.loads(line) for line in text_of(file).strip().split("\n")]
        assert all(list(line) == list(lines[0]) for line in lines)
        assert imported(file) == lines  # nothing is lost


def test_rows_point_to_each_other(exported):
    of, folder = exported
    release, model, group, source = (imported(folder / f"{name}.jsonl")[0] for name in ("release", "model", "sourceset", "source"))
    assert group["releaseName"] == release["name"] and group["modelId"] == model["id"] == "tiny" and model["layers"] == 4
    assert (source["setName"], source["modelId"], source["id"]) == (group["name"], model["id"], folder.name)
    assert (source["hfRepoId"], source["hfFolderId"]) == ("me/my-saes", "layer_3/a")
    assert not [name for name in model if name.startswith("default")]  # a foreign key to a set that is imported later
    features = imported(folder / "features/batch-0.jsonl.gz")
    assert [row["index"] for row in features] == [str(index) for index in range(of.sae.width)]
    assert {(row["modelId"], row["layer"], row["sourceSetName"]) for row in features} == {("tiny", folder.name, group["name"])}
    activations = imported(folder / "activations/batch-0.jsonl.gz")
    assert {(row["modelId"], row["layer"]) for row in activations} == {("tiny", folder.name)}
    assert {row["index"] for row in activations} == {row["index"] for row in features if row["frac_nonzero"] > 0}
    for row in activations:
        assert row["maxValue"] == row["values"][row["maxValueTokenIndex"]] == max(row["values"]) and row["minValue"] == min(row["values"])


def test_ids_are_of_the_form_of_a_cuid_unique_and_the_same_again(exported, tmp_path):
    of, folder = exported
    ids = [row["id"] for kind in ("activations", "explanations") for row in imported(folder / kind / "batch-0.jsonl.gz")]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("c[0-9a-f]{24}", id) for id in ids)
    (source,) = neuronpedia.write_neuronpedia(Bucket(str(tmp_path)), of, NAMES, lambda done: None)
    for file in folder.rglob("*.jsonl*"):
        assert (tmp_path / source / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_a_label_becomes_an_explanation_that_survives_the_importer(exported):
    _, folder = exported
    (row,) = imported(folder / "explanations/batch-0.jsonl.gz")
    assert row["description"] == NASTY.replace("\x00", "\ufffd") and row["index"] == "1" and row["notes"] == "score 0.750"
    assert row["typeName"] is None and row["explanationModelName"] is None


@pytest.mark.parametrize("width", [1, 128, 2**14, 128_000, 128_001, 2**17, 2**20])
def test_no_kind_has_more_files_than_the_importer_lists(width):
    assert -(-width // neuronpedia.latents_per_file(width)) <= 1000


def test_vectors_are_decoder_rows(exported, tmp_path):
    of, _ = exported
    (source,) = neuronpedia.write_neuronpedia(Bucket(str(tmp_path)), of, NAMES, lambda done: None, vectors=True)
    for row, decoder in zip(imported(tmp_path / source / "features/batch-0.jsonl.gz"), of.sae.W_dec.tolist(), strict=True):
        assert row["hasVector"] and row["vector"] == pytest.approx(decoder, rel=1e-5)
        assert row["hookName"] == "blocks.3.hook_resid_post"


def test_an_unknown_number_of_layers_is_asked_for(exported, tmp_path):
    with pytest.raises(InputError, match="--layers"):
        neuronpedia.write_neuronpedia(Bucket(str(tmp_path)), exported[0], Names(), lambda done: None)
