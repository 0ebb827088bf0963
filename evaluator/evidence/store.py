"""Write an SAE's evidence: its objects first, the record that commits them last."""

import base64
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from scopemill.evaluator.evidence.schema import EXAMPLES, LATENTS, TOKENS
from scopemill.proto.evidence import BLOCK_LATENTS, EvidenceRecord, StoredObject
from scopemill.proto.layout import EvidenceLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.proto.vocabulary import Vocabulary

_MAGIC_BYTES = 8  # that open an Arrow file
ROW_GROUP = 4096  # latents
OPTIONS = pa.ipc.IpcWriteOptions(
    compression="zstd", use_threads=False
)  # a compressor's threads would not change the bytes, but cost starts


def write_evidence(
    bucket: Bucket,
    layout: EvidenceLayout,
    examples: Iterable[pa.RecordBatch],
    latents: Callable[[], pa.Table],
    vocabulary: Vocabulary,
    facts: dict[str, Any],
) -> EvidenceRecord:
    """Write all objects of an SAE's evidence, and commit them.

    ``examples`` are batches of `BLOCK_LATENTS` latents in order, the last may be shorter; ``latents`` is called after the last.
    ``facts`` are the record's other fields.
    """
    data, starts, checksums = arrow_file(examples)
    table = latents().cast(LATENTS)
    objects = {
        layout.latents: parquet_file(table),
        layout.examples: data,
        layout.tokens: parquet_file(token_table(vocabulary)),
    }
    bucket.remove(layout.record)  # of damaged evidence that is made again
    for path, content in objects.items():
        bucket.write(path, content)
    record = EvidenceRecord(
        **facts,
        alive=int((table.column("fired").to_numpy() > 0).sum()),
        objects={path.rsplit("/", 1)[-1]: _stored(content) for path, content in objects.items()},
        blocks=_packed(starts, "<u8"),
        block_checksums=_packed(checksums, "<u4"),
    )
    bucket.write(layout.record, checksummed_record(record.model_dump(mode="json")))
    return record


def arrow_file(batches: Iterable[pa.RecordBatch]) -> tuple[bytes, list[int], list[int]]:
    """Return an Arrow IPC file of record batches, with the places and checksums of batches.

    The places are where each batch starts, and where the last one ends.
    """
    sink = pa.BufferOutputStream()
    starts = [_MAGIC_BYTES + EXAMPLES.serialize().size]  # the schema is written with the first batch
    with pa.ipc.new_file(sink, EXAMPLES, options=OPTIONS) as writer:
        for batch in batches:
            writer.write_batch(batch)
            starts.append(sink.tell())
    data = sink.getvalue()
    view = memoryview(data)
    checksums = [crc32c.crc32c(view[start:stop]) for start, stop in zip(starts, starts[1:], strict=False)]
    return data, starts, checksums


def parquet_file(table: pa.Table) -> bytes:
    """Return a table as a Parquet file, whose bytes depend on the table alone."""
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


def example_batches(first: int, examples: pa.Array) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of consecutive latents with their examples (see `EXAMPLE`).

    ``first`` is the first latent, a multiple of `BLOCK_LATENTS`.
    """
    for start in range(0, len(examples), BLOCK_LATENTS):
        part = examples.slice(start, BLOCK_LATENTS)
        latents = pa.array(range(first + start, first + start + len(part)), pa.int32())
        yield pa.record_batch([latents, part], schema=EXAMPLES)


def token_table(words: Vocabulary) -> pa.Table:
    """Return a vocabulary as the table of ``tokens.parquet``."""
    ids = range(len(words))
    special, trained = [id in words.special for id in ids], [id not in words.untrained for id in ids]
    return pa.table([list(ids), list(words.tokens), special, trained], schema=TOKENS)


def _stored(content: Any) -> StoredObject:
    return StoredObject(bytes=len(content), crc32c=crc32c.crc32c(content))


def _packed(numbers: list[int], dtype: str) -> str:
    return base64.b64encode(np.array(numbers, dtype=dtype).tobytes()).decode("ascii")
