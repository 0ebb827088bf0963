"""Text in every form it comes in, in an order that never changes, and one sentence for whatever is wrong with it."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import s3fs

from scopemill.harvester.config import CorpusConfig, ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.text import checks
from scopemill.harvester.text.corpus import documents
from scopemill.harvester.text.tally import Tally
from scopemill.proto.errors import CorpusError


def read(source, format: str, **options) -> list[str]:
    return list(documents(CorpusConfig(source=str(source), format=format, **options)))


def check_corpus(corpus: CorpusConfig) -> Tally:
    """The check of a corpus of text, which needs neither model nor tokenizer."""
    return checks.check_corpus(ModelConfig(name="unused"), ModelCard("unused", "0", 1, None, {}, 2, (2,)), corpus)


def refusal(source, format: str, **options) -> str:
    """What is said about a corpus that cannot be read to its end: one line."""
    with pytest.raises(CorpusError) as caught:
        read(source, format, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_parquet(path: Path, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz"])
def test_a_line_is_a_document(tmp_path, name):
    path = write(tmp_path / name, "first\nsecond \u00e9\r\n\n   \n\tthird\nlast, without an end")
    assert read(path, "lines") == ["first", "second \u00e9", "\tthird", "last, without an end"]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_file_is_a_document_and_files_come_by_name(tmp_path, ending):
    for name in ("b.py", "a/z.py", "c.py", "a/a.py"):
        write(tmp_path / "code" / (name + ending), f"# {name}\nline\n")
    write(tmp_path / "code" / ("blank.py" + ending), " \n")
    assert read(tmp_path / "code", "files") == [f"# {name}\nline\n" for name in ("a/a.py", "a/z.py", "b.py", "c.py")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.ndjson", "rows.json"])
def test_a_row_of_json_lines_is_a_document(tmp_path, name):
    write(
        tmp_path / "rows" / name,
        jsonl({"text": "one", "id": 1}, {"text": None}, {"text": ""}) + "\n" + jsonl({"id": 2, "text": "two\nlines"}),
    )
    for source in (tmp_path / "rows" / name, tmp_path / "rows"):
        assert read(source, "jsonl") == ["one", "two\nlines"]


def test_a_row_of_parquet_is_a_document(tmp_path):
    path = write_parquet(tmp_path / "rows" / "0.parquet", id=[1, 2, 3, 4], text=["one", None, " ", "two"])
    for source in (path, tmp_path / "rows"):
        assert read(source, "parquet") == ["one", "two"]


def test_the_text_is_in_the_column_that_is_named(tmp_path):
    assert read(write(tmp_path / "a.jsonl", jsonl({"text": "wrong", "body": "right"})), "jsonl", column="body") == ["right"]
    assert read(write_parquet(tmp_path / "a.parquet", text=["wrong"], body=["right"]), "parquet", column="body") == ["right"]


def test_a_folder_holds_the_files_of_its_format_at_any_depth(tmp_path):
    write(tmp_path / "2.jsonl", jsonl({"text": "second"}))
    write(tmp_path / "1" / "deep.jsonl", jsonl({"text": "first"}))
    write(tmp_path / "README.md", "no JSON")
    write_parquet(tmp_path / "3.parquet", text=["a table"])
    assert read(tmp_path, "jsonl") == ["first", "second"]
    assert read(tmp_path, "parquet") == ["a table"]


def test_a_glob_picks_files_in_the_order_of_their_names(tmp_path):
    for name in ("b-1.txt", "a-2.txt", "a-1.txt", "c.md"):
        write(tmp_path / name, name)
    assert read(tmp_path / "*.txt", "lines") == ["a-1.txt", "a-2.txt", "b-1.txt"]
    assert read(tmp_path / "a-?.txt", "files") == ["a-1.txt", "a-2.txt"]


def test_a_corpus_may_lie_on_s3(s3_url, tmp_path):
    write(tmp_path / "2.jsonl.gz", jsonl({"text": "second"}))
    write_parquet(tmp_path / "t.parquet", text=["a table"])
    client = s3fs.S3FileSystem(use_listings_cache=False)
    client.put(str(tmp_path / "2.jsonl.gz"), f"{s3_url}/corpus/2.jsonl.gz")
    client.put(str(tmp_path / "t.parquet"), f"{s3_url}/corpus/t.parquet")
    client.pipe(f"{s3_url}/corpus/1.jsonl", jsonl({"text": "first"}).encode())
    assert read(f"{s3_url}/corpus", "jsonl") == ["first", "second"]
    assert read(f"{s3_url}/corpus/*.gz", "jsonl") == ["second"]
    assert read(f"{s3_url}/corpus", "parquet") == ["a table"]
    assert f"{s3_url}/nothing" in refusal(f"{s3_url}/nothing", "jsonl")
    assert "s3://no-such-bucket/x" in refusal("s3://no-such-bucket/x", "lines")


def test_bytes_that_are_no_utf_8_do_not_end_a_harvest(tmp_path):
    assert read(write(tmp_path / "a.txt", b"caf\xe9\nnext"), "lines") == ["caf\ufffd", "next"]


def test_documents_are_read_only_as_they_are_asked_for(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "good"}) + "{bad")
    assert next(documents(CorpusConfig(source=str(path), format="jsonl"))) == "good"
    check_corpus(CorpusConfig(source=str(path), format="jsonl"))


@pytest.mark.parametrize("format", ["lines", "files", "jsonl", "parquet"])
@pytest.mark.parametrize("missing", ["no-such-file", "no-such-*", "empty"])
def test_a_corpus_that_is_not_there_is_named(tmp_path, format, missing):
    (tmp_path / "empty").mkdir()
    said = refusal(tmp_path / missing, format)
    assert str(tmp_path / missing) in said
    assert "is not there" in said


def test_a_folder_without_a_file_of_the_format_says_which_format(tmp_path):
    write(tmp_path / "a.txt", "text")
    assert "no parquet file" in refusal(tmp_path, "parquet")


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_a_corpus_without_any_text_is_empty(tmp_path, text):
    corpus = CorpusConfig(source=str(write(tmp_path / "a.txt", text)), format="lines")
    with pytest.raises(CorpusError, match="is empty") as caught:
        check_corpus(corpus)
    assert corpus.source in str(caught.value)


def test_a_missing_column_is_answered_with_those_that_are_there(tmp_path):
    said = refusal(write(tmp_path / "a.jsonl", jsonl({"text": "good"}, {"title": "x", "body": "y"})), "jsonl")
    assert "a.jsonl, line 2" in said
    assert "no column 'text'" in said and "'title'" in said and "'body'" in said
    said = refusal(write_parquet(tmp_path / "a.parquet", title=["x"], body=["y"]), "parquet", column="content")
    assert "a.parquet" in said
    assert "no column 'content'" in said and "'title'" in said and "'body'" in said


@pytest.mark.parametrize("row", [[], ["text"], "text", 7, None, {}])
def test_a_row_that_is_no_object_has_no_columns(tmp_path, row):
    assert "it has none" in refusal(write(tmp_path / "a.jsonl", jsonl(row)), "jsonl")


@pytest.mark.parametrize(("value", "type_name"), [(7, "int"), (["a"], "list"), ({"a": 1}, "dict"), (True, "bool")])
def test_a_column_that_holds_no_text_says_what_it_holds(tmp_path, value, type_name):
    for said in (
        refusal(write(tmp_path / "a.jsonl", jsonl({"text": "good"}, {"text": value})), "jsonl"),
        refusal(write_parquet(tmp_path / "a.parquet", text=[value]), "parquet"),
    ):
        assert f"column 'text' holds {type_name}, not text" in said


def test_a_line_that_is_no_json_is_named_by_its_number(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "one"}) + "\n" + jsonl({"text": "two"}) + '{"text": "thr')
    said = refusal(path, "jsonl")
    assert f"{path}, line 4: not JSON" in said


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", "certainly not")
    assert f"{path} is not a Parquet file" in refusal(path, "parquet")


@pytest.mark.parametrize("format", ["lines", "files", "jsonl"])
@pytest.mark.parametrize("damage", ["cut", "no gzip", "overwritten"])
def test_a_broken_archive_is_named(tmp_path, format, damage):
    path = tmp_path / "a.jsonl.gz"
    data = gzip.compress(jsonl(*({"text": str(number**7)} for number in range(200))).encode())
    path.write_bytes({"cut": data[:-200], "no gzip": b"not at all", "overwritten": data[:40] + b"\xff" * 40 + data[80:]}[damage])
    assert f"{path} cannot be read: " in refusal(path, format)


def test_a_source_of_no_known_kind_is_named():
    assert "nosuchscheme://x" in refusal("nosuchscheme://x", "lines")


class Hub:
    """Stands in for Hugging Face's hub, which tests cannot reach."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def load_dataset(self, *args, **options):
        self.asked.append((args, options))
        if isinstance(self.rows, Exception):
            raise self.rows
        return iter(self.rows)


@pytest.fixture
def hub(monkeypatch) -> Hub:
    hub = Hub([])
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


def test_a_data_set_of_the_hub_is_streamed(hub):
    hub.rows = [{"body": "one"}, {"body": ""}, {"body": "two"}]
    assert read("someone/texts", "hub", subset="en", split="validation", column="body") == ["one", "two"]
    assert hub.asked == [(("someone/texts", "en"), {"split": "validation", "streaming": True})]


def test_a_data_set_of_the_hub_is_read_no_further_than_asked(hub):
    def endless():
        yield {"text": "first"}
        raise AssertionError("nobody asked for that")

    hub.rows = endless()
    check_corpus(CorpusConfig(source="someone/texts", format="hub"))


def test_a_data_set_that_the_hub_does_not_have_is_named(hub):
    hub.rows = FileNotFoundError("no such data set")
    assert "dataset 'someone/texts' (train) cannot be streamed: no such data set" in refusal("someone/texts", "hub")


def test_a_hub_that_falls_silent_is_named(hub):
    def rows():
        yield {"text": "first"}
        raise ConnectionResetError("peer is gone")

    hub.rows = rows()
    assert "dataset 'someone/texts' (train) cannot be streamed: peer is gone" in refusal("someone/texts", "hub")


def test_a_data_set_without_the_column_is_answered_with_those_it_has(hub):
    hub.rows = [{"content": "x", "license": "y"}]
    said = refusal("someone/texts", "hub")
    assert "someone/texts" in said and "'text'" in said and "'content'" in said and "'license'" in said
