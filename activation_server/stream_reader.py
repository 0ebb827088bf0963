"""Batches from shards, each chunk object read once, in order, into reused memory.

From an object store chunks come whole, one ahead, over the ends of shards too. Local files are read in blocks (`blocks`).
"""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from scopemill.activation_server.block_reader import BlockLane
from scopemill.activation_server.order import Order
from scopemill.proto.dataset import ArraySpec, DatasetManifest, ShardCommit, read_chunk, read_commit, read_rolling
from scopemill.proto.errors import MissingObject, Stopped
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

# Chunk reads under way per stream: an object store answers several at once.
READS_AT_ONCE = 4
ROLLING_POLL_SECONDS = 1.0  # between looks for a shard that is still to be made, at most
FIRST_POLL_SECONDS = 0.05  # after the first look; each later pause is twice as long, so that small shards are not waited for in vain


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
        self._lanes: dict[tuple[int, str], _ChunkLane | BlockLane] = {}
        self._commits: dict[int, ShardCommit] = {}
        self._recycled: list[bytearray] = []
        self._lock = threading.Lock()  # guards what the reading threads share: commits, recycled memory and the count
        self._pool = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="chunk-reader")
        self.bytes_read = 0
        self._interrupted = threading.Event()
        self._look_again = 0.0

    @property
    def batch_bytes(self) -> int:
        return sum(self._batch_size * spec.width * spec.dtype.itemsize for spec in self._specs)

    @property
    def batches_per_epoch(self) -> int:
        return self._order.batches_per_epoch

    def read(self, k: int, into: memoryview, stop: int) -> None:
        """Fill ``into`` (``batch_bytes``) with batch k: hook after hook, B rows of d values.

        Of batches from ``stop`` on nobody will ask: nothing is read ahead for them.
        """
        present = self._order.shards(k)
        self._wait_for_shards(k, present)
        pieces, filled = self._order.pieces(k), 0
        upcoming = self._order.next_group(k)
        following = self._order.shards(upcoming) if upcoming < stop else ()
        if not self._are_there(following):
            following = ()
        lanes = [[self._lane(piece.place, spec) for piece in pieces] for spec in self._specs]
        for of_hook in lanes:
            for lane, piece in zip(of_hook, pieces, strict=True):  # what is not on its way yet is read side by side
                lane.want(piece.shard, piece.start, following[piece.place] if piece.place < len(following) else None)
        for spec, of_hook in zip(self._specs, lanes, strict=True):
            size = self._batch_size * spec.width * spec.dtype.itemsize
            rows = np.frombuffer(into[filled : filled + size], dtype=spec.dtype).reshape(self._batch_size, spec.width)
            filled += size
            done = 0
            for lane, piece in zip(of_hook, pieces, strict=True):
                n = piece.stop - piece.start
                lane.read(piece.shard, piece.start, rows[done : done + n])
                done += n
        with self._lock:
            for shard in self._commits.keys() - {*present, *following}:
                del self._commits[shard]

    def interrupt(self) -> None:
        """End a `read` that waits for shards, with Stopped. From any thread."""
        self._interrupted.set()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for lane in self._lanes.values():
            lane.close()

    def _wait_for_shards(self, k: int, shards: tuple[int, ...]) -> None:
        """In rolling mode a batch's shards may be still to come. MissingObject if they are gone."""
        if self._commits.keys() >= set(shards):
            return
        for position in self._order.positions(k):
            shard, pause = self._order.shard_at(position), FIRST_POLL_SECONDS
            while not self._is_there(shard):
                rolling = read_rolling(self._bucket, self._manifest.dataset)
                if rolling is None or position < rolling.low:
                    gone = "is not committed: harvest it" if rolling is None else (
                        "was deleted, because every trainer of the sweep had passed it: start the sweep again, which makes it anew"
                    )  # fmt: skip
                    raise MissingObject(f"batch {k} needs shard {shard} of {self._bucket.place(self._layout.root)}, which {gone}")
                if self._interrupted.wait(min(pause, ROLLING_POLL_SECONDS)):
                    raise Stopped(f"batch {k} was still to be harvested")
                pause *= 2

    def _are_there(self, shards: tuple[int, ...]) -> bool:
        """Whether shards may be read ahead. While they are not made yet, the bucket is asked only now and then."""
        if self._commits.keys() >= set(shards):
            return True
        if time.monotonic() < self._look_again:
            return False
        there = all(map(self._is_there, shards))
        self._look_again = 0.0 if there else time.monotonic() + ROLLING_POLL_SECONDS
        return there

    def _is_there(self, shard: int) -> bool:
        with suppress(MissingObject):
            return self._commit(shard) is not None
        return False

    def _lane(self, place: int, spec: ArraySpec) -> "_ChunkLane | BlockLane":
        if (place, spec.name) not in self._lanes:
            local = self._bucket.is_local
            self._lanes[place, spec.name] = (
                BlockLane(self._bucket, self._layout, spec, self._commit, self._count) if local else _ChunkLane(self, spec)
            )
        return self._lanes[place, spec.name]

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size

    def _fetch(self, shard: int, spec: ArraySpec, index: int) -> "_Chunk":
        commit = self._commit(shard)
        buffer = self._memory(spec.chunk_bytes)
        folder, crc = self._layout.array(shard, spec.name), commit.checksums[spec.name][index]
        data = read_chunk(self._bucket, folder, spec, index, crc, memoryview(buffer)[: spec.chunk_bytes])
        self._count(spec.chunk_bytes)
        return _Chunk(data, buffer)

    def _commit(self, shard: int) -> ShardCommit:
        with self._lock:
            commit = self._commits.get(shard)
        if commit is None:
            commit = read_commit(self._bucket, self._manifest.dataset, shard)
            with self._lock:
                self._commits[shard] = commit
        return commit

    def _memory(self, size: int) -> bytearray:
        with self._lock:
            for i, buffer in enumerate(self._recycled):
                if len(buffer) >= size:
                    return self._recycled.pop(i)
        return bytearray(size)

    def _recycle(self, buffer: bytearray) -> None:
        with self._lock:
            self._recycled.append(buffer)


@dataclass
class _Chunk:
    rows: np.ndarray
    buffer: bytearray  # what `rows` is a view of


class _ChunkLane:
    """One array at one place of the group, through the shards that come to this place in turn: the chunk in use, and the next one
    on its way."""

    def __init__(self, owner: StreamReader, spec: ArraySpec):
        self._following: int | None = None  # the shard that comes here after the present one
        self._owner, self._spec = owner, spec
        self._at: tuple[int, int] | None = None  # shard and index of the chunk in use
        self._chunk: _Chunk | None = None
        self._ahead: tuple[int, int] | None = None
        self._coming: Future | None = None

    def want(self, shard: int, row: int, following: int | None) -> None:
        """See to it that the chunk of a row is here or on its way. After this shard ``following`` comes to this place."""
        self._following = following
        self._see_to((shard, row // self._spec.chunk_rows))

    def _see_to(self, at: tuple[int, int]) -> None:
        if at not in (self._at, self._ahead):
            self._read_ahead(at)

    def read(self, shard: int, start: int, into: np.ndarray) -> None:
        """Copy rows of a shard from ``start`` on."""
        done = 0
        while done < len(into):
            index, offset = divmod(start + done, self._spec.chunk_rows)
            n = min(len(into) - done, self._spec.chunk_rows - offset)
            into[done : done + n] = self._rows(shard, index)[offset : offset + n]
            done += n

    def close(self) -> None:
        """What is on its way was cancelled with the pool."""

    def _rows(self, shard: int, index: int) -> np.ndarray:
        if self._at != (shard, index):
            if self._chunk:
                self._owner._recycle(self._chunk.buffer)
            self._chunk = self._at = None  # and so it stays if the read fails
            self._see_to((shard, index))
            coming, self._coming, self._ahead = self._coming, None, None
            self._chunk, self._at = coming.result(), (shard, index)
            if index + 1 < self._spec.chunks:
                self._read_ahead((shard, index + 1))
            elif self._following is not None and (self._following, 0) != self._at:
                self._read_ahead((self._following, 0))
        return self._chunk.rows

    def _read_ahead(self, at: tuple[int, int]) -> None:
        if self._coming and not self._coming.cancel():  # a chunk that is not needed after all
            self._coming.add_done_callback(lambda f: f.exception() or self._owner._recycle(f.result().buffer))
        shard, index = self._ahead = at
        self._coming = self._owner._pool.submit(self._owner._fetch, shard, self._spec, index)
