"""Measure how well the rows of a batch are mixed.

The measure is how often two of them come from one document, beside a perfect shuffle, where every pair of rows is as likely as any
other. Rows of a shard are neighbours in the corpus, and a batch takes its rows from one group of shards. So batches are as a perfect
shuffle of their group, and documents come together more often than in one of the whole dataset: about as much more as there are more
shards than a group has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scopemill.activation_server.order import Order
from scopemill.proto.chunks import ArraySpec, read_chunk
from scopemill.proto.dataset import ROW_LABELS, DatasetManifest, committed_shards, read_commit
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

SAMPLED_BATCHES = 64  # of the first group, evenly spaced


@dataclass(frozen=True)
class Mixing:
    """Hold how well batches are mixed; 1 is perfect.

    Both ratios are how often two rows of a batch come from one document, over how often they would in a perfect shuffle.
    """

    shards: int  # from which a batch has rows, on average, rounded
    group: int  # shards that are read side by side
    dataset: int  # shards in all
    within_group: float
    within_dataset: float

    def sentence(self) -> str:
        """Return what was measured, for people."""
        return (
            f"a batch has rows of {self.shards} of the {self.group} shards that are read side by side ({self.dataset} in all); two of its "
            f"rows come from one document {self.within_group:.2f} times as often as in a perfect shuffle of those shards, and "
            f"{self.within_dataset:.2f} times as often as in one of the whole dataset"
        )


def measure_mixing(bucket: Bucket, manifest: DatasetManifest, stream: StreamSpec) -> Mixing | None:
    """Measure the batches of a stream's first group of shards.

    None if these shards are not all there, as in rolling mode.
    """
    order = Order(manifest, stream)
    shards = order.shards(0)
    if not set(shards) <= committed_shards(bucket, manifest.dataset):
        return None
    return mixing(order, manifest.shards, {shard: _documents(bucket, manifest, shard) for shard in shards})


def mixing(order: Order, shards_in_all: int, documents: Mapping[int, np.ndarray]) -> Mixing:
    """Return the mixing of the first group's batches.

    ``documents`` has, for each shard of the group, the document of each row (rows,).
    """
    shards = order.shards(0)
    batches = np.unique(np.linspace(0, order.next_group(0) - 1, SAMPLED_BATCHES).astype(int))
    found, touched = [], []
    for k in batches:
        pieces = order.pieces(int(k))
        touched.append(len(pieces))
        found.append(_pairs(np.concatenate([documents[piece.shard][piece.start : piece.stop] for piece in pieces])))
    expected = _pairs(np.concatenate([documents[shard] for shard in shards]))
    within = float(np.mean(found)) / expected if expected else 1.0
    # Documents lie in one shard, but for those at its ends, so in a shuffle of all shards a pair is rarer in proportion.
    return Mixing(round(float(np.mean(touched))), len(shards), shards_in_all, within, within * shards_in_all / len(shards))


def _pairs(documents: Sequence[int] | np.ndarray) -> float:
    """Return how likely two different rows are of one document."""
    counts = np.unique(documents, return_counts=True)[1].astype(np.float64)
    rows = counts.sum()
    return float((counts * (counts - 1)).sum() / (rows * (rows - 1))) if rows > 1 else 0.0


def _documents(bucket: Bucket, manifest: DatasetManifest, shard: int) -> np.ndarray:
    """Read the document of each row of a shard, against its committed checksums."""
    spec = ArraySpec.of("document", manifest.rows_per_shard, None, ROW_LABELS["document"])
    folder, checksums = DatasetLayout(manifest.dataset).array(shard, spec.name), read_commit(bucket, manifest.dataset, shard).checksums
    buffers = [memoryview(bytearray(spec.chunk_bytes)) for _ in range(spec.chunks)]
    return np.concatenate([read_chunk(bucket, folder, spec, i, checksums[spec.name][i], buffer) for i, buffer in enumerate(buffers)])
