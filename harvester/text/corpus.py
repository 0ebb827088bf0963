"""Read a corpus' documents in a fixed order: files by name, rows as stored.

A document is a text, a conversation (a list of messages) or a list of token ids, as ``corpus.holds`` says.
"""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow.parquet as parquet

from scopemill.harvester.config import CorpusConfig
from scopemill.harvester.text.compression import is_text, unpacked
from scopemill.harvester.text.files import CorpusFiles, choose_files
from scopemill.harvester.text.tally import Tally
from scopemill.proto.errors import CorpusError

_HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON may hold half of a surrogate pair, which no tokenizer takes
Found = tuple[str, Any]  # where a document stands, in words, and the document


def located_documents(corpus: CorpusConfig, tally: Tally | None = None) -> Iterator[Found]:
    """Yield the place and content of every document that is not blank.

    The tally counts what is read. Raises CorpusError if the corpus is missing, cannot be read or lacks the column.
    """
    tally = Tally() if tally is None else tally
    return _with_text(_hub(corpus) if corpus.format == "hub" else _files(corpus, tally), tally)


def _with_text(found: Iterator[Found], tally: Tally) -> Iterator[Found]:
    """Yield the documents that are not blank, without halves of surrogate pairs, and count both."""
    for where, value in found:
        document = _without_halves(value)
        tally.replaced += document is not value
        if document and not (isinstance(document, str) and not document.strip()):
            tally.documents += 1
            yield where, document
        else:
            tally.blank += 1


def documents(corpus: CorpusConfig, tally: Tally | None = None) -> Iterator[Any]:
    """Yield every document that is not blank, as `located_documents` does."""
    return (document for _, document in located_documents(corpus, tally))


def _files(corpus: CorpusConfig, tally: Tally) -> Iterator[Found]:
    """Yield the documents of the corpus' files, by file name."""
    files = corpus_files(corpus, tally)
    for name in files.names:
        yield from _read_file(corpus, files, name, tally)


def corpus_files(corpus: CorpusConfig, tally: Tally) -> CorpusFiles:
    """Return the files of a corpus. Raises CorpusError if its source cannot be opened."""
    with _as_corpus_error(f"corpus {corpus.source!r} cannot be opened"):
        return choose_files(corpus, tally)


def file_documents(corpus: CorpusConfig, files: CorpusFiles, name: str, tally: Tally) -> Iterator[Found]:
    """Yield the documents of one of the corpus' files, as `located_documents` does."""
    return _with_text(_read_file(corpus, files, name, tally), tally)


def _read_file(corpus: CorpusConfig, files: CorpusFiles, name: str, tally: Tally) -> Iterator[Found]:
    """Yield the documents of a file. Compressed files are unpacked; a file without text is left out.

    Raises CorpusError if the file cannot be read, or is the corpus' only one and not text.
    """
    with _as_corpus_error(f"{name} cannot be read"), files.fs.open(name, "rb") as file:
        if corpus.format == "parquet":
            yield from _parquet(file, name, corpus)
            return
        content, head = unpacked(file, name)
        if is_text(head):
            yield from _READERS[corpus.format](content, name, corpus, tally)
        elif files.single:
            raise CorpusError(f"{name} is not text in UTF-8: name a file of text, or the format parquet, in the corpus")
        else:
            tally.files -= 1
            tally.leave_out("files that are not text", [name])


def _lines(file: IO[bytes], name: str, corpus: CorpusConfig, tally: Tally) -> Iterator[Found]:
    for number, line in enumerate(file, 1):
        yield f"{name}, line {number}", _decoded(line, tally).rstrip("\r\n")


def _whole_file(file: IO[bytes], name: str, corpus: CorpusConfig, tally: Tally) -> Iterator[Found]:
    yield name, _decoded(file.read(), tally)


def _decoded(data: bytes, tally: Tally) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        tally.replaced += 1
        return data.decode("utf-8", errors="replace")


def _jsonl(file: IO[bytes], name: str, corpus: CorpusConfig, tally: Tally) -> Iterator[Found]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: not JSON ({error}); format jsonl needs one JSON object per line") from error
        yield where, _value(row if isinstance(row, dict) else {}, corpus, where)


def _parquet(file: IO[bytes], name: str, corpus: CorpusConfig) -> Iterator[Found]:
    with _as_corpus_error(f"{name} is not a Parquet file"):
        table = parquet.ParquetFile(file)
    _check_column(table.schema_arrow.names, corpus, name)
    rows = (row for batch in table.iter_batches(columns=[corpus.column]) for row in batch.to_pylist())
    for number, row in enumerate(rows, 1):
        where = f"{name}, row {number}"
        yield where, _value(row, corpus, where)


def _hub(corpus: CorpusConfig) -> Iterator[Found]:
    import datasets  # slow to import, and no other format needs it

    with _as_corpus_error(f"Hub dataset {corpus.source!r} ({corpus.split}) cannot be streamed"):
        rows = datasets.load_dataset(corpus.source, corpus.subset, split=corpus.split, streaming=True)
        for number, row in enumerate(rows, 1):
            where = f"Hub dataset {corpus.source!r}, row {number}"
            yield where, _value(row, corpus, where)


@contextmanager
def _as_corpus_error(sentence: str) -> Iterator[None]:
    """Turn every error of the block into a CorpusError.

    Stores, archives, pyarrow and the hub raise a dozen kinds.
    """
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:
        raise CorpusError(f"{sentence}: {str(error) or type(error).__name__}") from error


def _check_column(columns: Collection[str], corpus: CorpusConfig, where: str) -> None:
    """Raise CorpusError unless the text's column is among these."""
    if corpus.column not in columns:
        there = ", ".join(map(repr, columns)) or "none"
        raise CorpusError(f"{where} has no column {corpus.column!r}; it has {there}: name the column to read in the corpus field 'column'")


def _value(row: dict[str, Any], corpus: CorpusConfig, where: str) -> Any:
    """Return the document in a row, empty where there is none. Raises CorpusError if the column holds something else."""
    _check_column(row, corpus, where)
    value = row[corpus.column]
    kind = str if corpus.holds == "text" else list
    if value is not None and not isinstance(value, kind):
        wanted = {"text": "text", "messages": "a list of messages", "tokens": "a list of token ids"}[corpus.holds]
        raise CorpusError(
            f"{where}: column {corpus.column!r} holds {type(value).__name__}, not {wanted}: name another column in the corpus field "
            "'column', or say in the field 'holds' what the column holds"
        )
    return value or kind()


def _without_halves(value: Any) -> Any:
    """Return a text, message or list without halves of surrogate pairs: the same object if there are none."""
    if isinstance(value, str):
        return _HALF_PAIR.sub("\ufffd", value) if _HALF_PAIR.search(value) else value
    if isinstance(value, dict):
        cleaned: Any = {key: _without_halves(part) for key, part in value.items()}
        return cleaned if any(cleaned[key] is not value[key] for key in value) else value
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        cleaned = [_without_halves(part) for part in value]
        return cleaned if any(new is not old for new, old in zip(cleaned, value, strict=True)) else value
    return value


_READERS = {"lines": _lines, "files": _whole_file, "jsonl": _jsonl}
