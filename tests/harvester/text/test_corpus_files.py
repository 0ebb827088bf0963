"""A corpus is read exactly: every file that it claims, whatever it is compressed with, and what is left out is counted and named."""

import bz2
import gzip
import json
import lzma
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopemill.harvester.config import CorpusConfig
from scopemill.harvester.text.compression import HEAD_BYTES, is_text
from scopemill.harvester.text.corpus import documents
from scopemill.harvester.text.tally import Tally
from scopemill.proto.errors import CorpusError


def arrow(codec: str):
    def compress(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": arrow("zstd"), ".lz4": arrow("lz4")}
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(200)
BINARIES = {
    "png": PNG,
    "pdf": b"%PDF-1.7\n" + bytes(range(32, 128)) * 10,
    "zip": b"PK\x03\x04\x14\x00" + bytes(100),
    "utf-16": "a text in UTF-16".encode("utf-16"),
    "pickle": b"\x80\x04\x95" + bytes(50),
    "another encoding": ("Все люди рождаются свободными. " * 20).encode("koi8-r"),
    "gzip in gzip": gzip.compress(gzip.compress(b"text " * 100)),
}


def read(source, format: str, **options) -> tuple[list[str], Tally]:
    tally = Tally()
    return list(documents(CorpusConfig(source=str(source), format=format, **options), tally)), tally


def refusal(source, format: str) -> str:
    with pytest.raises(CorpusError) as caught:
        read(source, format)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["text", "text.txt", *(f"text{ending}" for ending in COMPRESS if ending)])
def test_the_content_says_what_a_file_is_compressed_with(tmp_path, ending, name):
    """Whatever the name says, if the content tells; a plain text whose name says compressed is refused."""
    path = write(tmp_path / name, COMPRESS[ending](b"first\nsecond\n"))
    if not ending and name.endswith(tuple(filter(None, COMPRESS))):
        assert f"{path} cannot be read" in refusal(path, "lines")
    else:
        assert read(path, "lines")[0] == ["first", "second"]


@pytest.mark.parametrize("ending", [e for e in COMPRESS if e])
@pytest.mark.parametrize("format", ["lines", "files", "jsonl"])
def test_an_archive_of_several_parts_is_read_to_its_end_and_a_cut_one_is_named(tmp_path, ending, format):
    rows = [json.dumps({"text": f"row {i} {'x' * (i % 500)}"}) + "\n" for i in range(3000)]
    parts = ["".join(rows[:1500]).encode(), "".join(rows[1500:]).encode()]
    whole = b"".join(map(COMPRESS[ending], parts))
    path = write(tmp_path / f"a.jsonl{ending}", whole)
    found, _ = read(path, format)
    if format == "jsonl":
        assert found == [json.loads(row)["text"] for row in rows]
    else:
        assert "\n".join(found).rstrip("\n") == b"".join(parts).decode().rstrip("\n")
    write(path, whole[: len(whole) - 40])
    assert f"{path} cannot be read: " in refusal(path, format)


kinds = st.sampled_from(["text", "binary", "hidden", "in a hidden folder", "of another ending", "empty"])
entries = st.lists(st.tuples(kinds, st.sampled_from(list(COMPRESS)), st.sampled_from(list(BINARIES)), st.booleans()), max_size=8)


@settings(deadline=None, max_examples=60)
@given(entries, st.sampled_from(["lines", "files", "jsonl"]))
def test_any_mix_of_files_is_read_or_counted(mix, format):
    """Each file is written as one kind, and the kind alone says what becomes of it."""
    with tempfile.TemporaryDirectory() as folder:
        expected, counts = {}, dict.fromkeys(("read", "hidden", "not text", "do not end"), 0)
        for number, (kind, ending, binary, deep) in enumerate(mix):
            name = f"{'deep/' * deep}{number}.jsonl{ending}"
            text = f"document {number}"
            content = (json.dumps({"text": text}) if format == "jsonl" else text).encode()
            if kind == "binary":
                content = BINARIES[binary]
            elif kind == "hidden":
                name = f"{'deep/' * deep}._{number}.jsonl{ending}"
            elif kind == "in a hidden folder":
                name = f".git/{name}"
            elif kind == "of another ending":
                name = f"{'deep/' * deep}{number}.md{ending}"
            elif kind == "empty":
                content = b""
            write(Path(folder, name), COMPRESS[ending](content))
            if "hidden" in kind:
                counts["hidden"] += 1
            elif kind == "of another ending" and format == "jsonl":
                counts["do not end"] += 1
            elif kind == "binary":
                counts["not text"] += 1
            else:
                counts["read"] += 1
                if kind != "empty":
                    expected[str(Path(folder, name))] = text
        if not counts["read"] + counts["not text"]:
            assert "is not there" in refusal(folder, format)
            return
        found, tally = read(folder, format)
        assert found == [expected[name] for name in sorted(expected)]
        assert tally.files == counts["read"] and tally.documents == len(expected)
        left_out = tally.to_record()["left_out"]
        for words in ("hidden", "not text", "do not end"):
            assert sum(entry["files"] for kind, entry in left_out.items() if words in kind) == counts[words]
            assert (words in tally.sentence()) == (counts[words] > 0)


def test_what_is_left_out_is_named_by_its_first_file(tmp_path):
    write(tmp_path / "a.txt", "text")
    for name in (".DS_Store", "._a.txt", ".git/HEAD"):
        write(tmp_path / name, "hidden")
    write(tmp_path / "x.png", PNG)
    found, tally = read(tmp_path, "files")
    assert found == ["text"]
    assert tally.sentence() == (
        f"1 files, 1 documents, left out: 3 hidden files ({tmp_path}/.DS_Store, ...), 1 files that are not text ({tmp_path}/x.png)"
    )


def test_a_corpus_may_lie_below_a_hidden_folder(tmp_path):
    write(tmp_path / ".cache" / "a.txt", "text")
    for source in (tmp_path / ".cache", tmp_path / ".cache" / "*", tmp_path / ".cache" / "a.txt", tmp_path / ".c*" / "a.txt"):
        assert read(source, "lines")[0] == ["text"], source


def test_one_file_that_is_no_text_is_refused(tmp_path):
    for name, content in BINARIES.items():
        for ending, compress in COMPRESS.items():
            if name != "gzip in gzip" or ending:
                path = write(tmp_path / f"{name}{ending}", compress(content))
                assert f"{path} is not text in UTF-8" in refusal(path, "lines")


def test_a_folder_without_text_says_what_is_there(tmp_path):
    write(tmp_path / ".DS_Store", "x")
    assert "left out: 1 hidden files" in refusal(tmp_path, "files")
    write(tmp_path / "x.png", PNG)
    found, tally = read(tmp_path, "files")
    assert not found and tally.files == 0 and "x.png" in tally.sentence()


def test_a_glob_reads_files_and_counts_the_folders_that_it_matches(tmp_path):
    write(tmp_path / "a.txt", "first")
    write(tmp_path / "sub" / "b.txt", "below")
    found, tally = read(tmp_path / "*", "files")
    assert found == ["first"] and f"1 folders ({tmp_path}/sub)" in tally.sentence()
    assert read(tmp_path / "**", "files")[0] == ["first", "below"]


def test_a_name_with_the_characters_of_a_glob_is_a_name_first(tmp_path):
    write(tmp_path / "run[1]" / "a.txt", "of run[1]")
    write(tmp_path / "run1" / "a.txt", "of run1")
    write(tmp_path / "what?.txt", "a question")
    assert read(tmp_path / "run[1]", "files")[0] == ["of run[1]"]
    assert read(tmp_path / "run[1]" / "a.txt", "lines")[0] == ["of run[1]"]
    assert read(tmp_path / "what?.txt", "lines")[0] == ["a question"]


def test_a_pipe_is_not_waited_for(tmp_path):
    write(tmp_path / "a.txt", "text")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "nothing")
    (tmp_path / "d.txt").symlink_to(tmp_path / "a.txt")
    for source in (tmp_path, tmp_path / "*.txt"):
        found, tally = read(source, "lines")
        assert found == ["text", "text"] and "b.txt" in tally.sentence()


@pytest.mark.parametrize("format", ["lines", "jsonl", "messages"])
def test_half_a_surrogate_is_replaced_and_counted(tmp_path, format):
    """JSON may hold one; no tokenizer takes it."""
    halves = r'"broken \ud83d, \ude00 and \ud83d\ude00"'
    whole = "broken \ufffd, \ufffd and \U0001f600"
    if format == "lines":
        found, tally = read(write(tmp_path / "a.txt", b"broken \xed\xa0\xbd here\nwhole\n"), "lines")
        assert found == ["broken \ufffd\ufffd\ufffd here", "whole"] and tally.replaced == 1
    elif format == "jsonl":
        found, tally = read(write(tmp_path / "a.jsonl", f'{{"text": {halves}}}\n{{"text": "whole"}}\n'), "jsonl")
        assert found == [whole, "whole"] and tally.replaced == 1 and "1 with characters that are no text" in tally.sentence()
        found[0].encode()
    else:
        line = f'{{"messages": [{{"role": "user", "content": {halves}}}, {{"role": "assistant", "content": "whole"}}]}}\n'
        (conversation,), tally = read(write(tmp_path / "a.jsonl", line), "jsonl", holds="messages")
        assert [message["content"] for message in conversation] == [whole, "whole"] and tally.replaced == 1


def test_text_in_a_language_of_many_bytes_is_text_wherever_its_head_ends():
    for extra in range(4):
        assert is_text(("a" * extra + "\u4e2d\u6587" * HEAD_BYTES).encode()[:HEAD_BYTES])
    assert is_text(b"") and is_text(b"caf\xe9") and is_text("\ufffd\ufffd\ufffd".encode())
