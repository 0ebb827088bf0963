"""Labels from files: what is read is what listing shows, and each bad line is refused by its number."""

import gzip
import json

import pytest
from support import label_world
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.evaluator.evidence.reader import evidence_of
from scopemill.proto.errors import CorruptObject, InputError
from scopemill.proto.storage.bucket import Bucket

SAE = "saes/tiny/hook/width_40/jumprelu/0.001-abc"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> str:
    place = str(tmp_path_factory.mktemp("bucket"))
    label_world.write(Bucket(place), SAE)
    return f"{place}/{SAE}"


@pytest.fixture
def sae(written):
    yield written
    Bucket(written).remove_tree(f"evidence/{label_world.HASH}/labels")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def explanation(index: object, description: str = "the word x", layer: str = "2-set-res-16k", **more: str) -> str:
    fields = {"id": "a", "modelId": "tiny", "layer": layer, "index": index, "description": description, "typeName": "np_max-act"}
    return json.dumps(fields | {"explanationModelName": "gpt-5", "authorId": "b"} | more)


def test_a_csv_of_labels_is_listed_filtered_and_shown(sae, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text('\ufeffLatent,label,score\n3,"python, and\nmore",0.75\n5,poems,\n', encoding="utf-8")
    assert "2 labels of 2 latents" in run("label", sae, "--from", str(file))
    (row,) = json.loads(run("latents", sae, "--label", "*python*", "--json"))
    assert row["latent"] == 3 and row["label"] == "python, and more" and row["label_score"] == 0.75
    assert [row["latent"] for row in json.loads(run("latents", sae, "--sort", "label_score", "--most", "1", "--json"))] == [3]
    assert "poems" in run("latents", sae) and "label: poems" in run("latent", sae, "5")
    assert json.loads(run("latent", sae, "5", "--json"))["label_figures"]["author"] == "mine.csv"
    run("label", sae, "--from", str(file))
    assert len(Bucket(sae).names(f"evidence/{label_world.HASH}/labels")) == 1, "the same labels are the same file"


def test_neuronpedias_explanations_are_read_compressed_and_from_several_files(sae, tmp_path):
    for number, lines in enumerate([[explanation("3"), explanation(4)], [explanation(3, "other words", typeName="oai")]]):
        (tmp_path / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    told = run("label", sae, "--from", str(tmp_path / "batch-0.jsonl.gz"), "--from", str(tmp_path / "batch-1.jsonl.gz"))
    assert "3 labels of 2 latents" in told
    assert evidence_of(Bucket(sae), "").labels() == {3: ("the word x", None), 4: ("the word x", None)}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "latent,label\n1,a\n40,b\n", "a.csv, line 3: latent '40' does not exist: .* latents 0 to 39"),
        ("a.csv", "latent,label\n-1,a\n", "line 2: latent '-1' does not exist"),
        ("a.csv", "latent,label\n1.5,a\n", "line 2: latent '1.5' does not exist"),
        ("a.csv", "latent,label\n1,a\n2,b\n1,c\n", "line 4: latent 1 has a label already, at .*a.csv, line 2"),
        ("a.csv", "latent,label\n1,  \n", "line 2: the label of latent 1 is empty"),
        ("a.csv", "latent,label\n1\n", "line 2: the label of latent 1 is empty"),
        ("a.csv", "latent,label,score\n1,a,high\n", "line 2: the score 'high' is not a finite number"),
        ("a.csv", "latent,label,score\n1,a,nan\n", "line 2: the score 'nan' is not a finite number"),
        ("a.csv", "feature,text\n1,a\n", "line 1: its columns are feature, text"),
        ("a.csv", "latent,label\n", "no label is in there"),
        ("a.csv", "", "line 1: its columns are none"),
        ("b.jsonl", explanation(1) + "\n{", "b.jsonl, line 2 is no explanation"),
        ("b.jsonl", '{"index": 1}', "line 1 is no explanation"),
        ("b.jsonl", explanation(1) + "\n" + explanation(1), "line 2: latent 1 has a label already"),
        ("b.jsonl", explanation(1, layer="11-set-res-16k"), "source '11-set-res-16k' is of layer 11, but .* reads blocks.2"),
        ("b.jsonl.gz", "no gzip", "b.jsonl.gz cannot be read"),
    ],
)
def test_a_bad_line_is_refused_and_nothing_is_written(sae, tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=sentence):
        run("label", sae, "--from", str(tmp_path / name))
    assert not evidence_of(Bucket(sae), "").labels()


def test_a_missing_file_and_text_that_is_not_utf8_are_sentences(sae, tmp_path):
    with pytest.raises(InputError, match="none.csv cannot be read"):
        run("label", sae, "--from", str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("latent,label\n1,café\n".encode("latin-1"))
    with pytest.raises(InputError, match="latin.csv is not UTF-8 text"):
        run("label", sae, "--from", str(tmp_path / "latin.csv"))


def test_tables_of_labels_that_others_have_broken_are_named(sae):
    Bucket(sae).write(f"evidence/{label_world.HASH}/labels/mine.parquet", b"PAR1 or not")
    with pytest.raises(CorruptObject, match="mine.parquet is no Parquet file"):
        evidence_of(Bucket(sae), "").labels()
