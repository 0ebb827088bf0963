"""Which rows batch k is made of: a pure function of the manifest's plan, the seed and k.

An epoch is a permutation of the shards, read K side by side. A batch takes B rows evenly from the K shards of its
group, each shard from top to bottom, so mixing costs no gather. Of shard i, the first t batches of a group take
floor((t*B + i) / K) rows: by Hermite's identity these add up to t*B exactly, whatever B and K are.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import InputError
from scopemill.proto.wire import StreamSpec


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of the shard at one place of its group."""

    place: int
    shard: int
    start: int
    stop: int


class Order:
    def __init__(self, manifest: DatasetManifest, stream: StreamSpec):
        self._rows, self._shards = manifest.rows_per_shard, manifest.shards
        self._batch, self._seed = stream.batch_size, stream.seed
        self._side_by_side = min(stream.shards_side_by_side, manifest.shards)
        full, rest = divmod(self._shards, self._side_by_side)
        self._per_group = self._side_by_side * self._rows // self._batch
        # Rows that fill no batch at a group's end are left out of that epoch: fewer than B per group.
        self.batches_per_epoch = full * self._per_group + rest * self._rows // self._batch
        self.check(manifest.dataset, self._shards, self._rows, stream)

    @staticmethod
    def check(dataset: str, shards: int, rows_per_shard: int, stream: StreamSpec) -> None:
        """InputError unless the shards that are read side by side hold a batch."""
        side_by_side = min(stream.shards_side_by_side, shards)
        if side_by_side * rows_per_shard < stream.batch_size:
            raise InputError(
                f"a batch of {stream.batch_size} rows is more than dataset {dataset!r} reads side by side "
                f"({side_by_side} shards of {rows_per_shard} rows): lower train.batch_size"
            )

    def shards(self, k: int) -> tuple[int, ...]:
        """The shards that are read side by side when batch k is made. A batch of fewer rows takes none of some."""
        return tuple(map(self.shard_at, self.positions(k)))

    def positions(self, k: int) -> range:
        """Where the shards of batch k stand in the sequence of all shards, epoch after epoch."""
        epoch, within = divmod(k, self.batches_per_epoch)
        first = within // self._per_group * self._side_by_side
        return range(epoch * self._shards + first, epoch * self._shards + min(first + self._side_by_side, self._shards))

    def shard_at(self, position: int) -> int:
        epoch, place = divmod(position, self._shards)
        return _shard_order(self._seed, epoch, self._shards)[place]

    def pieces(self, k: int) -> tuple[Piece, ...]:
        """The rows of batch k, in the order in which they lie in it."""
        shards, t = self.shards(k), k % self.batches_per_epoch % self._per_group
        taken = [((t * self._batch + i) // len(shards), ((t + 1) * self._batch + i) // len(shards)) for i in range(len(shards))]
        return tuple(Piece(i, shards[i], a, b) for i, (a, b) in enumerate(taken) if a < b)

    def next_group(self, k: int) -> int:
        """The first batch after k that is made of other shards."""
        epoch, within = divmod(k, self.batches_per_epoch)
        return epoch * self.batches_per_epoch + min((within // self._per_group + 1) * self._per_group, self.batches_per_epoch)


@lru_cache(maxsize=8)
def _shard_order(seed: int, epoch: int, shards: int) -> tuple[int, ...]:
    # Raw words of a counter-based generator, which numpy keeps the same for ever.
    words = np.random.Philox(key=[seed, epoch]).random_raw(shards)
    return tuple(int(i) for i in np.argsort(words, kind="stable"))
