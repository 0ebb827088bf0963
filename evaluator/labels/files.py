"""Write and read the tables of labels below an SAE's evidence."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from scopemill.evaluator.evidence.reader import Evidence
from scopemill.evaluator.evidence.schema import SCORED_LABELS
from scopemill.evaluator.evidence.store import parquet_file

Row = dict[str, Any]  # the columns of `SCORED_LABELS`, those without a value left out


def whole_row(fields: dict[str, Any]) -> Row:
    """Return a row as it will be read back, with every column."""
    row: Row = pa.Table.from_pylist([fields], schema=SCORED_LABELS).to_pylist()[0]
    return row


def label_file(settings: dict[str, Any]) -> str:
    """Return the name of the file of labels that were made in this way."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_labels(evidence: Evidence, name: str) -> dict[int, Row]:
    """Return the rows of a file of labels by latent; none without the file."""
    path = evidence.layout.label_file(name)
    if not evidence.bucket.exists(path):
        return {}
    table = parquet.read_table(pa.BufferReader(evidence.bucket.read(path)), schema=SCORED_LABELS)
    return {row["latent"]: row for row in table.to_pylist()}


def write_labels(evidence: Evidence, name: str, rows: Iterable[Row], settings: dict[str, Any]) -> str:
    """Write a file of labels with their settings, and return its place."""
    schema = SCORED_LABELS.with_metadata({"scopemill": json.dumps(settings, sort_keys=True)})
    path = evidence.layout.label_file(name)
    evidence.bucket.write(path, parquet_file(pa.Table.from_pylist(list(rows), schema=schema)))
    return evidence.bucket.place(path)
