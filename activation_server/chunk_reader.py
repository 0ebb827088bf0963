"""Read rows of whole chunk objects from an object store, and prefetch the next chunk."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from scopemill.proto.chunks import ArraySpec, read_chunk
from scopemill.proto.dataset import ShardCommit
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket

READS_AT_ONCE = 4  # concurrent chunk reads per stream: an object store answers several at once


@dataclass
class Chunk:
    """Hold the rows of a chunk, and the buffer under them."""

    rows: np.ndarray
    buffer: bytearray


class ChunkFetcher:
    """Fetch chunk objects of one stream on threads, into recycled memory."""

    def __init__(self, bucket: Bucket, layout: DatasetLayout, commit: Callable[[int], ShardCommit], count: Callable[[int], None]):
        """``count`` gets the bytes of each read."""
        self._bucket, self._layout, self._commit, self._count = bucket, layout, commit, count
        self._free: list[bytearray] = []
        self._lock = threading.Lock()  # guards `_free`
        self._pool = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="chunk-reader")

    def submit(self, shard: int, spec: ArraySpec, index: int) -> Future[Chunk]:
        """Start to fetch a chunk."""
        return self._pool.submit(self._fetch, shard, spec, index)

    def discard(self, coming: Future[Chunk]) -> None:
        """Cancel a fetch, or recycle its memory when it ends."""

        def recycle(done: Future[Chunk]) -> None:
            if done.exception() is None:
                self.recycle(done.result())

        if not coming.cancel():
            coming.add_done_callback(recycle)

    def recycle(self, chunk: Chunk) -> None:
        """Reuse the memory of a chunk; its rows become invalid."""
        with self._lock:
            self._free.append(chunk.buffer)

    def close(self) -> None:
        """Cancel all fetches that have not started."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, shard: int, spec: ArraySpec, index: int) -> Chunk:
        commit = self._commit(shard)
        buffer = self._memory(spec.chunk_bytes)
        folder, crc = self._layout.array(shard, spec.name), commit.checksums[spec.name][index]
        rows = read_chunk(self._bucket, folder, spec, index, crc, memoryview(buffer)[: spec.chunk_bytes])
        self._count(spec.chunk_bytes)
        return Chunk(rows, buffer)

    def _memory(self, size: int) -> bytearray:
        with self._lock:
            for i, buffer in enumerate(self._free):
                if len(buffer) >= size:
                    return self._free.pop(i)
        return bytearray(size)


class ChunkReader:
    """Read one array at one place of the group, shard after shard.

    It holds the current chunk, and one chunk that is being fetched.
    """

    def __init__(self, fetcher: ChunkFetcher, spec: ArraySpec):
        self._fetcher, self._spec = fetcher, spec
        self._chunk: Chunk | None = None
        self._at: tuple[int, int] | None = None  # shard and index of the current chunk
        self._coming: tuple[tuple[int, int], Future[Chunk]] | None = None  # shard and index of the chunk that is being fetched
        self._next_shard: int | None = None  # comes to this place after the current shard

    def prepare(self, shard: int, row: int, next_shard: int | None) -> None:
        """Start to fetch the chunk of a row, unless it is here or being fetched."""
        self._next_shard = next_shard
        at = (shard, row // self._spec.chunk_rows)
        if at != self._at and not (self._coming and self._coming[0] == at):
            self._fetch(at)

    def read(self, shard: int, start: int, into: np.ndarray) -> None:
        """Copy rows of a shard from row ``start`` on into ``into`` (n, d)."""
        done = 0
        while done < len(into):
            index, offset = divmod(start + done, self._spec.chunk_rows)
            n = min(len(into) - done, self._spec.chunk_rows - offset)
            into[done : done + n] = self._load((shard, index)).rows[offset : offset + n]
            done += n

    def close(self) -> None:
        """Do nothing: `ChunkFetcher.close` cancels the fetches."""

    def _load(self, at: tuple[int, int]) -> Chunk:
        """Make a chunk the current one, and prefetch the next."""
        if self._chunk is not None:
            if self._at == at:
                return self._chunk
            self._fetcher.recycle(self._chunk)
        self._chunk = self._at = None  # stays None if the read fails
        coming = self._coming[1] if self._coming and self._coming[0] == at else self._fetch(at)
        self._coming = None
        self._chunk, self._at = coming.result(), at
        shard, index = at
        if index + 1 < self._spec.chunks:
            self._fetch((shard, index + 1))
        elif self._next_shard is not None and (self._next_shard, 0) != at:
            self._fetch((self._next_shard, 0))
        return self._chunk

    def _fetch(self, at: tuple[int, int]) -> Future[Chunk]:
        if self._coming:
            self._fetcher.discard(self._coming[1])
        shard, index = at
        future = self._fetcher.submit(shard, self._spec, index)
        self._coming = at, future
        return future
