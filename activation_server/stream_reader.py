"""Assemble batches of a stream from shards, and wait for shards in rolling mode.

An object store is read chunk by chunk (`chunk_reader`), local files block by block (`block_reader`).
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from scopemill.activation_server.block_reader import BlockReader
from scopemill.activation_server.chunk_reader import ChunkFetcher, ChunkReader
from scopemill.activation_server.order import Order, Piece
from scopemill.proto.chunks import ArraySpec
from scopemill.proto.dataset import DatasetManifest, ShardCommit, read_commit, read_rolling
from scopemill.proto.errors import CorruptObject, MissingObject, ShardLost, Stopped, StorageError
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.shards import take_back
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

ROLLING_POLL_SECONDS = 1.0  # longest pause between two looks for a shard that is not made yet
log = logging.getLogger(__name__)
REPAIRS = 3  # of one shard: a disk that damages it again and again ends the stream
FIRST_POLL_SECONDS = 0.05  # first pause; each later one is twice as long, so that small shards are noticed soon


class StreamReader:
    """Read the batches of one stream: fast in ascending order, correct in any order.

    ``bytes_read`` counts the bytes of chunk objects read from the bucket. Only `interrupt` may be called from another thread.
    """

    def __init__(self, bucket: Bucket, manifest: DatasetManifest, stream: StreamSpec):
        self._bucket, self._manifest = bucket, manifest
        self._order = Order(manifest, stream)
        self._layout = DatasetLayout(manifest.dataset)
        self._specs = [manifest.array(hook) for hook in stream.hooks]
        self._batch_size = stream.batch_size
        self._commits: dict[int, ShardCommit] = {}
        self._lock = threading.Lock()  # guards `_commits` and `bytes_read`, which the fetcher's threads use too
        self._fetcher = None if bucket.is_local else ChunkFetcher(bucket, self._layout, self._commit, self._count)
        self._readers: dict[tuple[int, str], ChunkReader | BlockReader] = {}  # by place in the group and hook
        self.bytes_read = 0
        self._interrupted = threading.Event()
        self._damaged: int | None = None  # the shard that the last read failed at
        self._repairs: Counter[int] = Counter()  # by shard
        self._look_again = 0.0

    @property
    def batch_bytes(self) -> int:
        """Return the bytes of one batch."""
        return sum(self._batch_size * spec.row_bytes for spec in self._specs)

    @property
    def batches_per_epoch(self) -> int:
        """Return the batches of one epoch."""
        return self._order.batches_per_epoch

    def read(self, k: int, into: memoryview, stop: int) -> None:
        """Fill ``into`` (``batch_bytes``) with batch k: hook after hook, B rows of d values.

        Batches from ``stop`` on will not be needed: nothing is prefetched for them.
        """
        shards, pieces = self._order.shards(k), self._order.pieces(k)
        self._wait_for_shards(k)
        next_shards = self._next_shards(k, stop)
        for spec in self._specs:  # all pieces that are not fetched yet are fetched side by side
            for piece in pieces:
                next_shard = next_shards[piece.place] if piece.place < len(next_shards) else None
                with self._noted(piece.shard):
                    self._reader(piece.place, spec).prepare(piece.shard, piece.start, next_shard)
        start = 0
        for spec in self._specs:
            stop_byte = start + self._batch_size * spec.row_bytes
            self._copy(spec, pieces, np.frombuffer(into[start:stop_byte], dtype=spec.dtype).reshape(self._batch_size, -1))
            start = stop_byte
        with self._lock:
            for shard in self._commits.keys() - {*shards, *next_shards}:
                del self._commits[shard]

    def read_whole(self, k: int, into: memoryview, stop: int) -> None:
        """Do as `read`, but take back a damaged shard, so that it is made again.

        In rolling mode the shard is waited for. Otherwise ShardLost is raised: the harvest makes the shard before training resumes.
        """
        while True:
            self._damaged = None
            try:
                return self.read(k, into, stop)
            except (CorruptObject, MissingObject) as error:
                if self._damaged is None or not self._take_back(self._damaged):
                    raise
                if read_rolling(self._bucket, self._manifest.dataset) is None:
                    raise ShardLost(f"shard {self._damaged} is taken back, to be made again: {error}") from error

    def _take_back(self, shard: int) -> bool:
        """Delete the commit record of a shard; return False if that cannot be or was done too often."""
        self._repairs[shard] += 1
        with self._lock:
            self._commits.pop(shard, None)
        if self._repairs[shard] > REPAIRS:
            return False
        try:
            take_back(self._bucket, self._manifest.dataset, shard)
        except StorageError:
            return False
        log.warning("shard %d of %s is damaged and taken back", shard, self._bucket.place(self._layout.root))
        return True

    def interrupt(self) -> None:
        """End a `read` that waits for shards, with Stopped. May be called from any thread."""
        self._interrupted.set()

    def close(self) -> None:
        """Close files, and cancel fetches that have not started."""
        if self._fetcher:
            self._fetcher.close()
        for reader in self._readers.values():
            reader.close()

    def _copy(self, spec: ArraySpec, pieces: tuple[Piece, ...], rows: np.ndarray) -> None:
        """Copy one hook's pieces of a batch into ``rows`` (B, d)."""
        done = 0
        for piece in pieces:
            n = piece.stop - piece.start
            with self._noted(piece.shard):
                self._reader(piece.place, spec).read(piece.shard, piece.start, rows[done : done + n])
            done += n

    def _next_shards(self, k: int, stop: int) -> tuple[int, ...]:
        """Return the shards of the group after batch k's, if they may be prefetched."""
        next_batch = self._order.next_group(k)
        shards = self._order.shards(next_batch) if next_batch < stop else ()
        return shards if self._are_committed(shards) else ()

    def _wait_for_shards(self, k: int) -> None:
        """Wait in rolling mode until batch k's shards are made; raise MissingObject for deleted shards, ShardLost for others."""
        if self._commits.keys() >= set(self._order.shards(k)):
            return
        for position in self._order.positions(k):
            shard, pause = self._order.shard_at(position), FIRST_POLL_SECONDS
            while not self._is_committed(shard):
                rolling = read_rolling(self._bucket, self._manifest.dataset)
                if rolling is None or position < rolling.low:
                    needed = f"batch {k} needs shard {shard} of {self._bucket.place(self._layout.root)}, which "
                    if rolling is None:
                        raise ShardLost(needed + "is not committed: run the harvest again to make it")
                    raise MissingObject(
                        needed + "was deleted, because every trainer of the sweep had passed it: start the sweep again to make it again"
                    )
                if self._interrupted.wait(min(pause, ROLLING_POLL_SECONDS)):
                    raise Stopped(f"stopped while batch {k} waited for shard {shard}, which was not harvested yet")
                pause *= 2

    def _are_committed(self, shards: tuple[int, ...]) -> bool:
        """Return True if all shards are committed. Missing shards are looked for once per ``ROLLING_POLL_SECONDS``."""
        if self._commits.keys() >= set(shards):
            return True
        if time.monotonic() < self._look_again:
            return False
        committed = all(map(self._is_committed, shards))
        self._look_again = 0.0 if committed else time.monotonic() + ROLLING_POLL_SECONDS
        return committed

    def _is_committed(self, shard: int) -> bool:
        with suppress(MissingObject):
            try:
                self._commit(shard)
                return True
            except CorruptObject:
                self._damaged = shard
                raise
        return False

    @contextmanager
    def _noted(self, shard: int) -> Iterator[None]:
        """Note the shard at which a read fails."""
        try:
            yield
        except (CorruptObject, MissingObject):
            self._damaged = shard
            raise

    def _reader(self, place: int, spec: ArraySpec) -> ChunkReader | BlockReader:
        if (place, spec.name) not in self._readers:
            self._readers[place, spec.name] = (
                ChunkReader(self._fetcher, spec)
                if self._fetcher
                else BlockReader(self._bucket, self._layout, spec, self._commit, self._count)
            )
        return self._readers[place, spec.name]

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size

    def _commit(self, shard: int) -> ShardCommit:
        with self._lock:
            commit = self._commits.get(shard)
        if commit is None:
            commit = read_commit(self._bucket, self._manifest.dataset, shard)
            with self._lock:
                self._commits[shard] = commit
        return commit
