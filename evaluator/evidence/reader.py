"""Read an SAE's evidence in ranges, every object against its checksum.

``latents.parquet`` has a row a latent, ``examples.arrow`` a record batch for each `BLOCK_LATENTS` latents, and ``evidence.json`` says
where each batch starts. So the contexts of a latent take one request.
"""

import base64
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from pydantic import ValidationError

from scopemill.evaluator.evidence.schema import EXAMPLES, LABELS, OUTPUT_SCORES
from scopemill.proto.errors import CorruptObject, InputError, MissingObject
from scopemill.proto.evidence import BLOCK_LATENTS, EvidenceRecord, Example
from scopemill.proto.layout import EvidenceLayout, SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record
from scopemill.proto.vocabulary import Vocabulary


class Evidence:
    """Read one SAE's evidence."""

    def __init__(self, bucket: Bucket, layout: EvidenceLayout, record: EvidenceRecord):
        self.bucket, self.layout, self.record = bucket, layout, record
        self._starts = np.frombuffer(base64.b64decode(record.blocks), dtype="<u8")
        self._checksums = np.frombuffer(base64.b64decode(record.block_checksums), dtype="<u4")

    @staticmethod
    def open(bucket: Bucket, sae: str, settings_hash: str) -> "Evidence":
        """Open the evidence of an SAE's folder; MissingObject if it is not committed."""
        layout = EvidenceLayout(sae, settings_hash)
        fields = read_record(bucket, layout.record)
        try:
            return Evidence(bucket, layout, EvidenceRecord.model_validate(fields))
        except ValidationError as error:
            raise CorruptObject(
                f"{bucket.place(layout.record)} is not evidence that this version can read: {error.errors()[0]['msg']}; make it again with "
                "scopemill evidence"
            ) from error

    def latents(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table of latents (see `schema.LATENTS`), or some of its columns."""
        return parquet.read_table(pa.BufferReader(self._whole(self.layout.latents)), columns=columns and list(columns))

    def rows(self, first: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of latents in order, a row group in memory at once."""
        file = parquet.ParquetFile(pa.BufferReader(self._whole(self.layout.latents)))
        begin, stop = 0, self.record.width if stop is None else stop
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if end > first and begin < stop:
                yield from file.read_row_group(group).slice(max(0, first - begin), min(end, stop) - max(begin, first)).to_pylist()
            begin = end

    def latent(self, latent: int) -> dict[str, Any]:
        """Return the row of one latent; InputError for a latent that the SAE lacks."""
        self.check(latent)
        row: dict[str, Any] = self._table.slice(latent, 1).to_pylist()[0]
        return row

    def examples(self, latent: int) -> list[Example]:
        """Return the contexts of one latent, in one request.

        The top ones come first, by falling activation; then those of intervals, from above.
        """
        self.check(latent)
        batch = self.block(latent // BLOCK_LATENTS)
        return _examples(batch.column("examples")[latent % BLOCK_LATENTS])

    def block(self, index: int) -> pa.RecordBatch:
        """Read one record batch of examples, in one request."""
        start, stop = (int(place) for place in self._starts[index : index + 2])
        data = self.bucket.read_range(self.layout.examples, start, stop)
        if crc32c.crc32c(data) != int(self._checksums[index]):
            raise self._damaged(self.layout.examples)
        return pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(data)), EXAMPLES)

    @property
    def blocks(self) -> int:
        """Return the number of record batches of examples."""
        return len(self._checksums)

    def all_examples(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, list[Example]]]:
        """Yield latents in order with their contexts, a block in memory at once."""
        stop = self.record.width if stop is None else stop
        for index in range(first // BLOCK_LATENTS, -(-stop // BLOCK_LATENTS)):
            batch = self.block(index)
            for latent, examples in zip(batch.column("latent").to_pylist(), batch.column("examples"), strict=True):
                if first <= latent < stop:
                    yield latent, _examples(examples)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the text of the model's tokens."""
        return _vocabulary(parquet.read_table(pa.BufferReader(self._whole(self.layout.tokens))))

    def labels(self) -> dict[int, tuple[str, float | None]]:
        """Return the label and score of each latent that has one.

        Of several labels the one of the highest score is returned.
        """
        return {latent: (row["label"], row["score"]) for latent, row in self.label_rows().items()}

    def label_rows(self) -> dict[int, dict[str, Any]]:
        """Return the whole row of each latent's label (see `schema.SCORED_LABELS`), as `labels` chooses it."""
        best: dict[int, dict[str, Any]] = {}
        for name in self.bucket.names(self.layout.labels):
            if name.endswith(".parquet"):
                for row in self._table_of(f"{self.layout.labels}/{name}", LABELS.names):
                    known = best.get(row["latent"])
                    if known is None or (row["score"] or 0.0) > (known["score"] or 0.0):
                        best[row["latent"]] = row
        return best

    def output_scores(self) -> dict[int, tuple[float, float]]:
        """Return each latent's output score, and that of a random direction.

        The direction has the norm of the latent's push. Empty if they were not measured.
        """
        path = self.layout.output_scores
        rows = self._table_of(path, OUTPUT_SCORES.names) if self.bucket.exists(path) else []
        return {row["latent"]: (row["output_score"], row["output_score_random"]) for row in rows}

    def is_whole(self, read: bool = False) -> bool:
        """Return True if every object has its size, and with ``read`` its checksum."""
        for name, stored in self.record.objects.items():
            path = f"{self.layout.root}/{name}"
            if self.bucket.size(path) != stored.bytes or (read and crc32c.crc32c(self.bucket.read(path)) != stored.crc32c):
                return False
        return True

    def _table_of(self, path: str, needed: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of a table that lies beside the evidence, whoever wrote it."""
        try:
            rows: list[dict[str, Any]] = parquet.read_table(pa.BufferReader(self.bucket.read(path))).to_pylist()
        except pa.ArrowException as error:
            raise CorruptObject(f"{self.bucket.place(path)} is no Parquet file: delete it, or write it again") from error
        if rows and (lacking := sorted(set(needed) - set(rows[0]))):
            raise CorruptObject(f"{self.bucket.place(path)} lacks the columns {', '.join(lacking)}: delete it, or write it again")
        return rows

    @cached_property
    def _table(self) -> pa.Table:
        return self.latents()

    def check(self, latent: int) -> None:
        """Raise InputError for a latent that the SAE lacks."""
        if not 0 <= latent < self.record.width:
            raise InputError(f"latent {latent} does not exist: the SAE {self.record.sae} has latents 0 to {self.record.width - 1}")

    def _whole(self, path: str) -> bytes:
        data = self.bucket.read(path)
        stored = self.record.objects[path.rsplit("/", 1)[-1]]
        if len(data) != stored.bytes or crc32c.crc32c(data) != stored.crc32c:
            raise self._damaged(path)
        return data

    def _damaged(self, path: str) -> CorruptObject:
        return CorruptObject(
            f"{self.bucket.place(path)} does not match its checksum in {self.bucket.place(self.layout.record)}: make it again with "
            "scopemill evidence"
        )


def evidence_of(bucket: Bucket, sae: str) -> Evidence:
    """Return an SAE's evidence; MissingObject if there is none.

    Of several settings, the evidence from the most rows is returned.
    """
    hashes = bucket.names(SaeLayout(sae).evidence)
    found = [Evidence.open(bucket, sae, name) for name in hashes if bucket.exists(EvidenceLayout(sae, name).record)]
    if not found:
        raise MissingObject(f"{bucket.place(sae) if sae else bucket.url} has no evidence yet: make it with scopemill evidence")
    return max(found, key=lambda evidence: (evidence.record.rows, evidence.layout.root))


def own_page(bucket: Bucket, sae: str) -> str | None:
    """Return the path of the static page beside an SAE's evidence, or None."""
    with suppress(MissingObject, CorruptObject):
        index = evidence_of(bucket, sae).layout.page_index
        return index if bucket.exists(index) else None
    return None


def _examples(listed: Any) -> list[Example]:
    return [Example(**fields) for fields in listed.as_py()]


def _vocabulary(table: pa.Table) -> Vocabulary:
    tokens, special, trained = (table.column(name).to_pylist() for name in ("bytes", "special", "trained"))
    return Vocabulary(
        tokens,
        frozenset(id for id, is_special in enumerate(special) if is_special),
        frozenset(id for id, was_trained in enumerate(trained) if not was_trained),
    )
