"""Documents of a corpus, in an order that never changes: files by name, then rows as they lie."""

import json
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow.parquet as parquet

from scopemill.harvester.config import CorpusConfig
from scopemill.proto.errors import CorpusError

_ENDINGS = {"jsonl": (".jsonl", ".json", ".jsonl.gz", ".ndjson"), "parquet": (".parquet",)}


def documents(corpus: CorpusConfig) -> Iterator[str]:
    """Every document that is not blank. CorpusError if the text is not there or lacks the column."""
    for text in _READERS[corpus.format](corpus):
        if text.strip():
            yield text


def check_corpus(corpus: CorpusConfig) -> None:
    """CorpusError unless at least one document can be read."""
    if next(documents(corpus), None) is None:
        raise CorpusError(f"corpus {corpus.source!r} is empty: no document in it has any text")


def _files(corpus: CorpusConfig) -> Iterator[Any]:
    """The corpus' files, opened for bytes, sorted by name; ``.gz`` and its like are unpacked on the way."""
    try:
        fs, path = fsspec.core.url_to_fs(corpus.source)
        if any(c in path for c in "*?["):
            found = sorted(fs.glob(path))
        elif fs.isdir(path):
            endings = _ENDINGS.get(corpus.format, ("",))
            found = [f for f in sorted(fs.find(path)) if f.endswith(endings)]
        else:
            found = [path] if fs.exists(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise CorpusError(f"corpus {corpus.source!r} cannot be opened: {error}") from error
    if not found:
        raise CorpusError(f"corpus {corpus.source!r} is not there: no {corpus.format} file matches it")
    for name in found:
        try:
            with fs.open(name, "rb", compression="infer" if corpus.format != "parquet" else None) as file:
                file.scopemill_name = name
                yield file
        except OSError as error:
            raise CorpusError(f"{name} cannot be read: {error}") from error


def _lines(corpus: CorpusConfig) -> Iterator[str]:
    for file in _files(corpus):
        for line in file:
            yield line.decode("utf-8", errors="replace").rstrip("\r\n")


def _whole_files(corpus: CorpusConfig) -> Iterator[str]:
    for file in _files(corpus):
        yield file.read().decode("utf-8", errors="replace")


def _jsonl(corpus: CorpusConfig) -> Iterator[str]:
    for file in _files(corpus):
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CorpusError(f"{file.scopemill_name}, line {number}: not JSON ({error})") from error
            yield _text(row if isinstance(row, dict) else {}, corpus, f"{file.scopemill_name}, line {number}")


def _parquet(corpus: CorpusConfig) -> Iterator[str]:
    for file in _files(corpus):
        try:
            table = parquet.ParquetFile(file)
        except Exception as error:  # pyarrow raises several kinds for a file that is not Parquet
            raise CorpusError(f"{file.scopemill_name} is not a Parquet file: {error}") from error
        if corpus.column not in table.schema_arrow.names:
            _text(dict.fromkeys(table.schema_arrow.names), corpus, file.scopemill_name)
        for batch in table.iter_batches(columns=[corpus.column]):
            for row in batch.to_pylist():
                yield _text(row, corpus, file.scopemill_name)


def _hub(corpus: CorpusConfig) -> Iterator[str]:
    import datasets  # heavy, and only this source needs it

    try:
        stream = datasets.load_dataset(corpus.source, corpus.subset, split=corpus.split, streaming=True)
    except Exception as error:  # the library raises its own, httpx's and huggingface_hub's
        raise CorpusError(f"data set {corpus.source!r} ({corpus.split}) cannot be streamed: {error}") from error
    for row in stream:
        yield _text(row, corpus, f"data set {corpus.source!r}")


def _text(row: dict[str, Any], corpus: CorpusConfig, where: str) -> str:
    if corpus.column not in row:
        raise CorpusError(f"{where} has no column {corpus.column!r}; it has {', '.join(map(repr, row)) or 'none'}")
    value = row[corpus.column]
    if value is not None and not isinstance(value, str):
        raise CorpusError(f"{where}: column {corpus.column!r} holds {type(value).__name__}, not text")
    return value or ""


_READERS = {"lines": _lines, "files": _whole_files, "jsonl": _jsonl, "parquet": _parquet, "hub": _hub}
