"""Read rows of chunk objects from local files, block by block, and check each block.

A block has its own checksum in the commit record and fits a core's cache. Whole blocks are read straight into the batch.
A block that ends outside the batch is read into a small buffer, which keeps the remaining rows for the next batch.
"""

import os
from collections.abc import Callable
from typing import BinaryIO

import crc32c
import numpy as np

from scopemill.proto.chunks import ArraySpec, wrong_checksum, wrong_size
from scopemill.proto.dataset import ShardCommit
from scopemill.proto.errors import CorruptObject
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import retry_corrupt_read

BLOCKS_PER_READ = 4  # together these blocks stay in a core's cache until they are checked


class BlockReader:
    """Read one array at one place of the group, shard after shard."""

    def __init__(
        self, bucket: Bucket, layout: DatasetLayout, spec: ArraySpec, commit: Callable[[int], ShardCommit], count: Callable[[int], None]
    ):
        """``count`` gets the bytes of each read."""
        self._bucket, self._layout, self._spec, self._commit, self._count = bucket, layout, spec, commit, count
        self._at: tuple[int, int] | None = None  # shard and index of the open chunk
        self._file: BinaryIO | None = None
        self._place, self._checksums = "", np.empty(0, np.uint32)
        self._chunk_rows, self._block_rows, self._block_bytes = spec.chunk_rows, spec.block_rows, spec.block_bytes
        self._edge = np.empty((spec.block_rows, *spec.shape[1:]), dtype=spec.dtype)
        self._edge_block: int | None = None  # the block of the open chunk that `_edge` holds

    def prepare(self, shard: int, row: int, next_shard: int | None) -> None:
        """Open a row's chunk, so that errors appear before any copy; no prefetch."""
        self._open((shard, row // self._chunk_rows))

    def read(self, shard: int, start: int, into: np.ndarray) -> None:
        """Copy rows of a shard from row ``start`` on into ``into`` (n, d)."""
        while len(into):
            index, row = divmod(start, self._chunk_rows)
            file = self._open((shard, index))
            block, offset = divmod(row, self._block_rows)
            rows = min(self._block_rows, self._chunk_rows - row + offset)  # the last block of a chunk may be shorter
            n = min(len(into), rows - offset)
            if n == rows:
                whole = max(n, len(into) // self._block_rows * self._block_rows)
                n = min(whole, self._chunk_rows - row, BLOCKS_PER_READ * self._block_rows)
                self._read_blocks(file, block, into[:n])
            else:
                if block != self._edge_block:
                    self._edge_block = None  # stays None if the read fails
                    self._read_blocks(file, block, self._edge[:rows])
                    self._edge_block = block
                into[:n] = self._edge[offset : offset + n]
            start, into = start + n, into[n:]

    def close(self) -> None:
        """Close the open file."""
        if self._file:
            self._file.close()
        self._file = self._at = self._edge_block = None

    def _open(self, at: tuple[int, int]) -> BinaryIO:
        if self._file is not None and self._at == at:
            return self._file
        self.close()
        shard, index = at
        checksums = self._commit(shard).block_checksums(self._spec, index)
        path = f"{self._layout.array(shard, self._spec.name)}/{self._spec.chunk_key(index)}"
        file = self._bucket.open_local(path)
        if (size := os.fstat(file.fileno()).st_size) != self._spec.chunk_bytes:
            file.close()
            raise wrong_size(self._bucket.place(path), size, self._spec)
        if hasattr(os, "posix_fadvise"):  # the system reads this file ahead while other files are read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._file, self._at, self._checksums, self._place = file, at, checksums, self._bucket.place(path)
        return file

    def _read_blocks(self, file: BinaryIO, first: int, into: np.ndarray) -> None:
        """Read whole blocks from block ``first`` on, and check each."""
        raw, size = into.data.cast("B"), self._block_bytes

        def read() -> None:
            found = self._bucket.read_at(file, self._place, first * size, raw)
            self._count(found)
            for block, at in enumerate(range(0, len(raw), size), first):
                if found != len(raw) or crc32c.crc32c(raw[at : at + size]) != self._checksums[block]:
                    raise wrong_checksum(self._place)

        try:
            retry_corrupt_read(read)
        except CorruptObject:
            self.close()  # a repaired object is another file
            raise
