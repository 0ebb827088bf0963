"""Read a corpus' documents in a fixed order: files by name, rows as stored."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pyarrow.parquet as parquet

from scopemill.harvester.config import CorpusConfig
from scopemill.proto.errors import CorpusError

_ENDINGS = {"jsonl": (".jsonl", ".json", ".jsonl.gz", ".ndjson"), "parquet": (".parquet",)}


def documents(corpus: CorpusConfig) -> Iterator[str]:
    """Yield every document that is not blank.

    Raises CorpusError if the text is missing, cannot be read or lacks the column.
    """
    for text in _hub(corpus) if corpus.format == "hub" else _files(corpus):
        if text.strip():
            yield text


def check_corpus(corpus: CorpusConfig) -> None:
    """Raise CorpusError unless at least one document can be read."""
    if next(documents(corpus), None) is None:
        raise CorpusError(f"corpus {corpus.source!r} is empty: none of its documents has any text")


def _files(corpus: CorpusConfig) -> Iterator[str]:
    """Yield the documents of the corpus' files, by file name. Compressed files are unpacked."""
    with _as_corpus_error(f"corpus {corpus.source!r} cannot be opened"):
        fs, path = fsspec.core.url_to_fs(corpus.source)
        if any(c in path for c in "*?["):
            found = sorted(fs.glob(path))
        elif fs.isdir(path):
            endings = _ENDINGS.get(corpus.format, ("",))
            found = [f for f in sorted(fs.find(path)) if f.endswith(endings)]
        else:
            found = [path] if fs.exists(path) else []
    if not found:
        raise CorpusError(f"corpus {corpus.source!r} is not there: no {corpus.format} file matches; check its source and format")
    compression = None if corpus.format == "parquet" else "infer"
    for name in found:
        with _as_corpus_error(f"{name} cannot be read"), fs.open(name, "rb", compression=compression) as file:
            yield from _READERS[corpus.format](file, name, corpus)


def _lines(file: Any, name: str, corpus: CorpusConfig) -> Iterator[str]:
    for line in file:
        yield line.decode("utf-8", errors="replace").rstrip("\r\n")


def _whole_file(file: Any, name: str, corpus: CorpusConfig) -> Iterator[str]:
    yield file.read().decode("utf-8", errors="replace")


def _jsonl(file: Any, name: str, corpus: CorpusConfig) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{name}, line {number}: not JSON ({error}); format jsonl needs one JSON object per line") from error
        yield _text(row if isinstance(row, dict) else {}, corpus, f"{name}, line {number}")


def _parquet(file: Any, name: str, corpus: CorpusConfig) -> Iterator[str]:
    with _as_corpus_error(f"{name} is not a Parquet file"):
        table = parquet.ParquetFile(file)
    _check_column(table.schema_arrow.names, corpus, name)
    for batch in table.iter_batches(columns=[corpus.column]):
        for row in batch.to_pylist():
            yield _text(row, corpus, name)


def _hub(corpus: CorpusConfig) -> Iterator[str]:
    import datasets  # slow to import, and no other format needs it

    with _as_corpus_error(f"Hub dataset {corpus.source!r} ({corpus.split}) cannot be streamed"):
        for row in datasets.load_dataset(corpus.source, corpus.subset, split=corpus.split, streaming=True):
            yield _text(row, corpus, f"Hub dataset {corpus.source!r}")


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
        raise CorpusError(f"{where} has no column {corpus.column!r}; it has {there}: name the text's column in the corpus field 'column'")


def _text(row: dict[str, Any], corpus: CorpusConfig, where: str) -> str:
    _check_column(row, corpus, where)
    value = row[corpus.column]
    if value is not None and not isinstance(value, str):
        raise CorpusError(
            f"{where}: column {corpus.column!r} holds {type(value).__name__}, not text: name a column of text in the corpus field 'column'"
        )
    return value or ""


_READERS = {"lines": _lines, "files": _whole_file, "jsonl": _jsonl, "parquet": _parquet}
