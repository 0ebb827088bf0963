"""Run one stream of the server: its window, its memory, and its reading threads."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import get_args

import numpy as np

from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.shared_memory import SharedSlots
from scopemill.activation_server.slot_pool import Slot, SlotPool
from scopemill.activation_server.stream_reader import StreamReader
from scopemill.activation_server.window import WaitReason, Window, capacity_of
from scopemill.proto import metrics
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import ScopemillError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import NO_SEGMENT, StreamSpec

log = logging.getLogger(__name__)

# What a reading thread reports: the batch, its slot, the consumer (None: the window), and the error of a failed read.
Report = Callable[["Stream", int, Slot, "str | None", "ScopemillError | None"], None]
# Shared slots beyond the window's capacity, for dropped batches that trainers still read. Further slots go through the socket.
SPARE_SLOTS = 64


class Stream:
    """Hold a stream for the server's loop.

    A reading thread touches only its reader and the slot it fills.
    """

    def __init__(
        self, bucket: Bucket, manifest: DatasetManifest, spec: StreamSpec, config: ServerConfig, window_bytes: int, report: Report
    ):
        self.spec, self.manifest = spec, manifest
        self._new_reader = partial(StreamReader, bucket, manifest, spec)
        reader = self._new_reader()
        self.batch_bytes, self.batches_per_epoch = reader.batch_bytes, reader.batches_per_epoch
        capacity = capacity_of(window_bytes, self.batch_bytes, spec.label)
        self.window = Window(capacity, config.lag, config.join_seconds, config.lag_seconds)
        self.slots: dict[int, Slot] = {}  # batches held
        self.alone: dict[tuple[str, int], Slot] = {}  # batches read for one consumer, about to be sent
        self.memory = SlotPool(self._new_slot)
        self._shared = self._share(capacity + SPARE_SLOTS)
        self.segment = self._shared.segment if self._shared else NO_SEGMENT
        self._report = report
        self._window_reader = _ReadingThread(self, reader, None)
        self._private_readers: dict[str, _ReadingThread] = {}
        self._lagging: set[str] = set()  # consumers with a lag metric
        metrics.SERVER_WINDOW_CAPACITY.labels(spec.label).set(capacity)
        for counter in (metrics.SERVER_BYTES_READ, metrics.SERVER_BYTES_SERVED, metrics.SERVER_DETACHED_BYTES, metrics.SERVER_DETACHED,
                        metrics.SERVER_SKIPPED, metrics.SERVER_LOST):  # fmt: skip
            counter.labels(spec.label)  # starts at 0, so that a rate includes the first increase

    def load(self, index: int) -> None:
        """Start to read a batch into the window."""
        self._window_reader.read(index, self.memory.take(), self.window.stop)

    def load_alone(self, consumer: str, index: int) -> None:
        """Start to read a batch for one detached consumer."""
        if consumer not in self._private_readers:
            self._private_readers[consumer] = _ReadingThread(self, self._new_reader(), consumer)
        self._private_readers[consumer].read(index, self.memory.take(), self.window.consumers[consumer].stop)

    def stop_private_readers(self) -> None:
        """Stop the private readers of consumers that are back in the window, or gone."""
        detached = {name for name, consumer in self.window.consumers.items() if consumer.detached}
        for name in self._private_readers.keys() - detached:
            self._private_readers.pop(name).stop()

    def observe(self, seconds: float) -> None:
        """Update the metrics of lags and waits, ``seconds`` after the last update."""
        lags, waits, label = self.window.lags(), self.window.waits(), self.spec.label
        for sae in self._lagging - lags.keys():
            metrics.SERVER_LAG.remove(label, sae)
        for sae, lag in lags.items():
            metrics.SERVER_LAG.labels(label, sae).set(lag)
        self._lagging = set(lags)
        for reason in get_args(WaitReason):
            metrics.SERVER_WAIT_SECONDS.labels(label, reason).inc(waits[reason] * seconds)

    def close(self) -> None:
        """Cancel all waiting reads, and remove the stream's gauges."""
        for thread in self._threads():
            thread.stop(at_once=True)
        for gauge in (metrics.SERVER_WINDOW_BATCHES, metrics.SERVER_WINDOW_CAPACITY, metrics.SERVER_CONSUMERS):
            gauge.remove(self.spec.label)
        for sae in self._lagging:
            metrics.SERVER_LAG.remove(self.spec.label, sae)
        if self._shared:
            self._shared.close()

    def join(self, timeout: float) -> None:
        """Wait for the reading threads to end, after ``close``."""
        for thread in self._threads():
            thread.join(timeout)

    def _threads(self) -> list["_ReadingThread"]:
        return [self._window_reader, *self._private_readers.values()]

    def _share(self, slots: int) -> SharedSlots | None:
        try:
            return SharedSlots(slots, self.batch_bytes)
        except (OSError, AttributeError) as error:
            log.warning("%s: this host has no shared memory (%s); its trainers get batches through the socket", self.spec.label, error)
            return None

    def _new_slot(self, number: int) -> Slot:
        if self._shared and number < self.segment.slots:
            return Slot(*self._shared.slot(number), number)
        return Slot(memoryview(bytearray(self.batch_bytes)), np.zeros(1, np.uint64))


class _ReadingThread:
    """Read batches on a thread, for the window (``consumer`` is None) or for one consumer."""

    def __init__(self, stream: Stream, reader: StreamReader, consumer: str | None):
        self._jobs: SimpleQueue[tuple[int, Slot, int] | None] = SimpleQueue()
        self._stream, self._reader, self._consumer = stream, reader, consumer
        self._thread = threading.Thread(target=self._run, name=f"reader-{stream.spec.label}", daemon=True)
        self._thread.start()

    def read(self, index: int, slot: Slot, stop: int) -> None:
        self._jobs.put((index, slot, stop))

    def stop(self, at_once: bool = False) -> None:
        """End after the waiting jobs, or ``at_once`` without them."""
        if at_once:
            self._reader.interrupt()
        with suppress(Empty):
            while at_once:
                self._jobs.get_nowait()
        self._jobs.put(None)

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _run(self) -> None:
        label = self._stream.spec.label
        counted = 0
        while job := self._jobs.get():
            index, slot, stop = job
            problem: ScopemillError | None = None
            try:
                self._reader.read_whole(index, slot.memory, stop)
            except ScopemillError as error:
                problem = error
            except Exception as error:  # must reach the trainers, not end this thread silently
                problem = ScopemillError(f"reading batch {index} of {label} failed: {type(error).__name__}: {error}")
            read = self._reader.bytes_read - counted  # includes bytes prefetched since the last batch
            counted += read
            metrics.SERVER_BYTES_READ.labels(label).inc(read)
            if self._consumer:
                metrics.SERVER_DETACHED_BYTES.labels(label).inc(read)
            self._stream._report(self._stream, index, slot, self._consumer, problem)
        self._reader.close()
