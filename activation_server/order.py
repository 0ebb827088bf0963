"""Compute the rows of batch k from the manifest's plan, the seed and k.

An epoch is a permutation of the shards, read in groups of at most K that differ by one shard at most. A batch takes B rows
evenly from the shards of its group, each shard from top to bottom, so mixing needs no gather. The first t batches of a group
of K take floor((t*B + i) / K) rows of shard i: by Hermite's identity these counts add up to exactly t*B, for any B and K.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import InputError
from scopemill.proto.wire import StreamSpec


@dataclass(frozen=True)
class Piece:
    """Describe rows ``start`` to ``stop`` of the shard at one place of its group."""

    place: int
    shard: int
    start: int
    stop: int


class _Group(NamedTuple):
    """Describe a group of an epoch: its shards and its batches."""

    first_shard: int
    shards: int
    first_batch: int
    batches: int


class Order:
    """Order the rows of a stream: which shards and rows each batch takes."""

    def __init__(self, manifest: DatasetManifest, stream: StreamSpec):
        self._rows, self._shards = manifest.rows_per_shard, manifest.shards
        self._batch, self._seed = stream.batch_size, stream.seed
        sizes = group_sizes(manifest.shards, stream.shards_side_by_side)
        self._size, self._larger = sizes[-1], sizes.count(sizes[-1] + 1)  # shards of the smaller groups, and number of larger groups
        # Rows at a group's end that fill no batch are left out of the epoch: fewer than B rows per group.
        self._batches = self._size * self._rows // self._batch
        self._batches_of_larger = (self._size + 1) * self._rows // self._batch
        self.batches_per_epoch = sum(size * self._rows // self._batch for size in sizes)
        self.check(manifest.dataset, self._shards, self._rows, stream)

    @staticmethod
    def check(dataset: str, shards: int, rows_per_shard: int, stream: StreamSpec) -> None:
        """Raise InputError unless the shards of a group hold a batch."""
        side_by_side = max(group_sizes(shards, stream.shards_side_by_side))
        if side_by_side * rows_per_shard < stream.batch_size:
            raise InputError(
                f"a batch of {stream.batch_size} rows is more than dataset {dataset!r} reads side by side "
                f"({side_by_side} shards of {rows_per_shard} rows): lower train.batch_size or raise server.shards_side_by_side"
            )

    def shards(self, k: int) -> tuple[int, ...]:
        """Return the shards of batch k's group.

        A batch of fewer than K rows takes rows from some of them only.
        """
        return tuple(map(self.shard_at, self.positions(k)))

    def positions(self, k: int) -> range:
        """Return the positions of batch k's shards in the sequence of shards, epoch after epoch."""
        group = self._group(k)
        first = k // self.batches_per_epoch * self._shards + group.first_shard
        return range(first, first + group.shards)

    def shard_at(self, position: int) -> int:
        """Return the shard at a position of the sequence of shards."""
        epoch, place = divmod(position, self._shards)
        return _shard_order(self._seed, epoch, self._shards)[place]

    def pieces(self, k: int) -> tuple[Piece, ...]:
        """Return the pieces of batch k, in the batch's row order."""
        shards, t = self.shards(k), k % self.batches_per_epoch - self._group(k).first_batch
        taken = [((t * self._batch + i) // len(shards), ((t + 1) * self._batch + i) // len(shards)) for i in range(len(shards))]
        return tuple(Piece(i, shards[i], a, b) for i, (a, b) in enumerate(taken) if a < b)

    def next_group(self, k: int) -> int:
        """Return the first batch after k that belongs to another group."""
        group = self._group(k)
        return k // self.batches_per_epoch * self.batches_per_epoch + group.first_batch + group.batches

    def _group(self, k: int) -> "_Group":
        """Return the group of batch k within its epoch; larger groups come first."""
        within, larger = k % self.batches_per_epoch, self._larger
        if within < larger * self._batches_of_larger:
            i = within // self._batches_of_larger
            return _Group(i * (self._size + 1), self._size + 1, i * self._batches_of_larger, self._batches_of_larger)
        i = (within - larger * self._batches_of_larger) // self._batches
        first_batch = larger * self._batches_of_larger + i * self._batches
        return _Group(larger * (self._size + 1) + i * self._size, self._size, first_batch, self._batches)


def group_sizes(shards: int, side_by_side: int) -> list[int]:
    """Return the number of shards in each group, larger groups first.

    There are as few groups as can be, and they differ by one shard at most, so that each batch of an epoch is mixed alike.
    """
    groups = -(-shards // side_by_side)
    return [shards // groups + (i < shards % groups) for i in range(groups)]


@lru_cache(maxsize=8)
def _shard_order(seed: int, epoch: int, shards: int) -> tuple[int, ...]:
    # Raw words of a counter-based generator: numpy guarantees the same words in every version.
    words = np.random.Philox(key=[seed, epoch]).random_raw(shards)
    return tuple(int(i) for i in np.argsort(words, kind="stable"))
