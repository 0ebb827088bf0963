"""Batches from shards: chunk objects read once, in order, into reused memory, one chunk ahead."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from scopemill.activation_server.order import Order, Piece
from scopemill.proto.bucket import Bucket
from scopemill.proto.dataset import ArraySpec, DatasetManifest, ShardCommit, read_chunk, read_commit
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.wire import StreamSpec

# Chunk reads under way per stream. On a local disk two are enough; an object store answers several at once.
READS_AT_ONCE = 4


class StreamReader:
    """Reads batches of one stream, in ascending order for speed; any order is right.

    ``bytes_read`` counts bytes of chunk objects that came from the bucket.
    """

    def __init__(self, bucket: Bucket, manifest: DatasetManifest, stream: StreamSpec):
        self._bucket, self._manifest = bucket, manifest
        self._order = Order(manifest, stream)
        self._layout = DatasetLayout(manifest.dataset)
        self._specs = [manifest.array(hook) for hook in stream.hooks]
        self._batch_size = stream.batch_size
        self._open: dict[tuple[int, str], _ArrayReader] = {}
        self._commits: dict[int, ShardCommit] = {}
        self._recycled: list[bytearray] = []
        self._lock = threading.Lock()  # guards what the reading threads share: recycled memory and the count
        self._pool = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="chunk-reader")
        self.bytes_read = 0

    @property
    def batch_bytes(self) -> int:
        return sum(self._batch_size * spec.width * spec.dtype.itemsize for spec in self._specs)

    @property
    def batches_per_epoch(self) -> int:
        return self._order.batches_per_epoch

    def read(self, k: int, into: memoryview) -> None:
        """Fill ``into`` (``batch_bytes``) with batch k: hook after hook, B rows of d values."""
        pieces = self._order.pieces(k)
        self._close_all_but(set(self._order.shards(k)))
        arrays = {(piece, spec.name): self._array(piece, spec) for piece in pieces for spec in self._specs}
        filled = 0
        for spec in self._specs:
            size = self._batch_size * spec.width * spec.dtype.itemsize
            rows = np.frombuffer(into[filled : filled + size], dtype=spec.dtype).reshape(self._batch_size, spec.width)
            filled += size
            done = 0
            for piece in pieces:
                n = piece.stop - piece.start
                arrays[piece, spec.name].read(piece.start, rows[done : done + n])
                done += n

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _array(self, piece: Piece, spec: ArraySpec) -> "_ArrayReader":
        key = (piece.shard, spec.name)
        if key not in self._open:
            if piece.shard not in self._commits:
                self._commits[piece.shard] = read_commit(self._bucket, self._manifest.dataset, piece.shard)
            checksums = self._commits[piece.shard].checksums[spec.name]
            reader = _ArrayReader(self, self._layout.array(piece.shard, spec.name), spec, checksums)
            reader.read_ahead(piece.start // spec.chunk_rows)  # all of a group's first chunks are read side by side
            self._open[key] = reader
        return self._open[key]

    def _close_all_but(self, shards: set[int]) -> None:
        for key in [key for key in self._open if key[0] not in shards]:
            self._open.pop(key).close()
        for shard in self._commits.keys() - shards:
            del self._commits[shard]

    def _read_chunk(self, folder: str, spec: ArraySpec, index: int, crc: int) -> tuple[np.ndarray, bytearray]:
        buffer = self._memory(spec.chunk_bytes)
        data = read_chunk(self._bucket, folder, spec, index, crc, memoryview(buffer)[: spec.chunk_bytes])
        with self._lock:
            self.bytes_read += spec.chunk_bytes
        return data, buffer

    def _memory(self, size: int) -> bytearray:
        with self._lock:
            for i, buffer in enumerate(self._recycled):
                if len(buffer) >= size:
                    return self._recycled.pop(i)
        return bytearray(size)

    def _recycle(self, buffer: bytearray) -> None:
        with self._lock:
            self._recycled.append(buffer)


class _ArrayReader:
    """One array of one shard: the chunk in use, and the next one on its way."""

    def __init__(self, owner: StreamReader, folder: str, spec: ArraySpec, checksums: list[int]):
        self._owner, self._folder, self._spec, self._checksums = owner, folder, spec, checksums
        self._index = -1
        self._data: np.ndarray | None = None
        self._buffer: bytearray | None = None
        self._next: tuple[int, Future] | None = None

    def read(self, start: int, into: np.ndarray) -> None:
        """Copy rows from ``start`` on."""
        done = 0
        while done < len(into):
            chunk, offset = divmod(start + done, self._spec.chunk_rows)
            n = min(len(into) - done, self._spec.chunk_rows - offset)
            into[done : done + n] = self._chunk(chunk)[offset : offset + n]
            done += n

    def close(self) -> None:
        self._recycle_own()
        if self._next and not self._next[1].cancel():
            self._next[1].add_done_callback(lambda f: f.exception() or self._owner._recycle(f.result()[1]))
        self._next = None

    def read_ahead(self, index: int) -> None:
        if index < self._spec.chunks:
            self._next = (index, self._owner._pool.submit(self._fetch, index))

    def _chunk(self, index: int) -> np.ndarray:
        if index != self._index:
            expected, future = self._next or (None, None)
            self._next, self._index = None, -1  # and so it stays if the read fails
            self._recycle_own()
            self._data, self._buffer = future.result() if expected == index else self._fetch(index)
            self._index = index
            self.read_ahead(index + 1)
        return self._data

    def _fetch(self, index: int) -> tuple[np.ndarray, bytearray]:
        return self._owner._read_chunk(self._folder, self._spec, index, self._checksums[index])

    def _recycle_own(self) -> None:
        if self._buffer is not None:
            self._owner._recycle(self._buffer)
        self._data = self._buffer = None
