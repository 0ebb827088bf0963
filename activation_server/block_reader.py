"""Rows of chunk objects in a local folder, block by block: whole blocks go straight into the batch, and only one is ever held.

A block is what the commit record has a checksum of, and fits a core's cache, where its CRC-32C is taken. What a batch
needs of a block at its edge is copied out of a small buffer, which keeps the rest for the next batch.
"""

import os
from collections.abc import Callable
from typing import BinaryIO

import crc32c
import numpy as np

from scopemill.proto.dataset import ArraySpec, ShardCommit, wrong_bytes, wrong_size
from scopemill.proto.errors import CorruptObject
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import retry_corrupt_read

AT_ONCE = 4  # blocks in one read: together they stay in a core's cache until they are checked


class BlockLane:
    """One array at one place of the group, through the shards that come to this place in turn. ``count`` is told of bytes read."""

    def __init__(
        self, bucket: Bucket, layout: DatasetLayout, spec: ArraySpec, commit: Callable[[int], ShardCommit], count: Callable[[int], None]
    ):
        self._bucket, self._layout, self._spec, self._commit, self._count = bucket, layout, spec, commit, count
        self._at: tuple[int, int] | None = None  # shard and index of the open chunk
        self._file: BinaryIO | None = None
        self._place, self._checksums = "", np.empty(0, np.uint32)
        self._chunk_rows, self._block_rows, self._block_bytes = spec.chunk_rows, spec.block_rows, spec.block_bytes
        self._edge = np.empty((spec.block_rows, *spec.shape[1:]), dtype=spec.dtype)
        self._edge_block: int | None = None  # of the open chunk

    def want(self, shard: int, row: int, following: int | None) -> None:
        """Open the chunk of a row, so that what is wrong with it is known before any row is copied. ``following`` needs no care here."""
        self._open((shard, row // self._chunk_rows))

    def read(self, shard: int, start: int, into: np.ndarray) -> None:
        """Copy rows of a shard from ``start`` on."""
        while len(into):
            index, row = divmod(start, self._chunk_rows)
            self._open((shard, index))
            block, at = divmod(row, self._block_rows)
            rows = min(self._block_rows, self._chunk_rows - row + at)  # the last block of a chunk may be shorter
            n = min(len(into), rows - at)
            if n == rows:
                n = min(max(n, len(into) // self._block_rows * self._block_rows), self._chunk_rows - row, AT_ONCE * self._block_rows)
                self._read_blocks(block, into[:n])
            else:
                if block != self._edge_block:
                    self._edge_block = None  # and so it stays if the read fails
                    self._read_blocks(block, self._edge[:rows])
                    self._edge_block = block
                into[:n] = self._edge[at : at + n]
            start, into = start + n, into[n:]

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._file = self._at = self._edge_block = None

    def _open(self, at: tuple[int, int]) -> None:
        if self._at == at:
            return
        self.close()
        shard, index = at
        checksums = self._commit(shard).block_checksums(self._spec, index)
        path = f"{self._layout.array(shard, self._spec.name)}/{self._spec.chunk_key(index)}"
        file = self._bucket.open_local(path)
        if (size := os.fstat(file.fileno()).st_size) != self._spec.chunk_bytes:
            file.close()
            raise wrong_size(self._bucket.place(path), size, self._spec)
        if hasattr(os, "posix_fadvise"):  # each lane is read ahead by the system while the others are read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._file, self._at, self._checksums, self._place = file, at, checksums, self._bucket.place(path)

    def _read_blocks(self, first: int, into: np.ndarray) -> None:
        """Rows of whole blocks, checked."""
        raw, size = memoryview(into).cast("B"), self._block_bytes

        def read() -> None:
            found = self._bucket.read_at(self._file, self._place, first * size, raw)
            self._count(found)
            for block, at in enumerate(range(0, len(raw), size), first):
                if found != len(raw) or crc32c.crc32c(raw[at : at + size]) != self._checksums[block]:
                    raise wrong_bytes(self._place)

        try:
            retry_corrupt_read(read)
        except CorruptObject:
            self.close()  # whoever mends the object puts another file in its place
            raise
