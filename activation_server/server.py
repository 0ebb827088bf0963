"""Serve batches to trainers: connect their requests with the streams' windows.

One thread owns the mailbox and every window; other threads post tasks to it. Batches are sent without a copy: a slot is
reused only after ZeroMQ has sent the last frame that refers to it. A trainer on this host borrows the slot in shared
memory instead; that slot is reused once the trainer has acknowledged the batch.
"""

import logging
import threading
import time
from queue import SimpleQueue

import zmq

from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.keys import ServerKeys
from scopemill.activation_server.mailbox import Mailbox
from scopemill.activation_server.peers import Peer, Peers
from scopemill.activation_server.shared_memory import this_host
from scopemill.activation_server.slot_pool import Slot
from scopemill.activation_server.stream import Stream
from scopemill.activation_server.window import Decision, Detached, Drop, Finish, GaveUp, Load, LoadAlone, Send, Skipped
from scopemill.proto import metrics, wire
from scopemill.proto.dataset import DatasetManifest, read_manifest
from scopemill.proto.errors import InputError, ScopemillError, WireError
from scopemill.proto.storage.bucket import Bucket

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 2.0
TICK_SECONDS = 0.5
LEAVING_SECONDS = 5.0  # how long a new stream waits for the BYE of an old stream's last trainer
MAX_CONSUMERS = 1024  # per stream: each costs memory, and time at every event
REVOKED = "the server does not allow this trainer's key any more: its file is not in the folder `allowed` of server.keys"
MAX_CREDIT_BATCHES = 16  # limit per trainer, below the socket's high-water mark


class ActivationServer:
    """Serve streams of a bucket's datasets at ``address`` until ``stop``.

    A stream is opened for its first trainer. It is closed, and its memory freed, when no trainer reads it or is expected.
    """

    def __init__(self, bucket: Bucket, config: ServerConfig, streams: int = 1):
        """``streams``: the most streams at a time; each gets an equal share of the memory."""
        keys = ServerKeys.load(config.keys) if config.keys else None
        self._bucket, self._config, self._most_streams = bucket, config, max(1, streams)
        self._window_bytes = (config.window_mib << 20) // self._most_streams
        self._streams: dict[wire.StreamSpec, Stream] = {}
        self._manifests: dict[str, DatasetManifest] = {}
        self._peers = Peers()
        self._sending = False  # True while a dropped slot waits for its frame to be sent
        self._stopping = False
        self._ticked = time.monotonic()
        self._mailbox = Mailbox(config.host, keys)
        self.address = self._mailbox.address
        self._thread = threading.Thread(target=self._run, name="activation-server", daemon=True)
        self._thread.start()

    # Called from other threads

    def expect(self, spec: wire.StreamSpec, consumer: str, cursor: int, stop: int) -> None:
        """Keep the window for a trainer that will connect; raise the stream's error, if any.

        If the limit of streams is reached, wait up to ``LEAVING_SECONDS``: the BYE of an old stream may be on its way.
        """
        deadline = time.monotonic() + LEAVING_SECONDS
        while isinstance(error := self._announce(spec, consumer, cursor, stop), WireError) and time.monotonic() < deadline:
            time.sleep(0.05)
        if error is not None:
            raise error

    def _announce(self, spec: wire.StreamSpec, consumer: str, cursor: int, stop: int) -> Exception | None:
        done: SimpleQueue[Exception | None] = SimpleQueue()

        def task() -> None:
            try:
                stream = self._stream(spec)
                self._carry_out(stream, stream.window.expect(consumer, cursor, stop, time.monotonic()))
                done.put(None)
            except Exception as error:
                done.put(error)

        self._mailbox.post(task)
        return done.get(timeout=60)

    def expect_no_more(self, spec: wire.StreamSpec, consumer: str) -> None:
        """Free the place of a trainer that has failed and will not connect again."""
        self._mailbox.post(lambda: self._dismiss(spec, consumer))

    def stop(self) -> None:
        """Stop serving. Trainers get no message: they continue at their cursors with the next server."""
        if self._thread.is_alive():
            self._mailbox.post(self._begin_stop)
            self._thread.join(timeout=10)
        for stream in list(self._streams.values()):
            stream.join(timeout=2)

    def _begin_stop(self) -> None:
        self._stopping = True

    # The server's thread

    def _run(self) -> None:
        next_tick = 0.0
        while not self._stopping:
            for frames in self._mailbox.receive(0.02 if self._sending else TICK_SECONDS / 2):
                self._receive(frames)
            self._mailbox.run_tasks()  # in every round: the task of a failed send must not wait for a message
            self._sending = any([stream.memory.recycle() for stream in self._streams.values()])
            if time.monotonic() >= next_tick:
                self._tick()
                next_tick = time.monotonic() + TICK_SECONDS
        for stream in self._streams.values():
            stream.close()
        self._mailbox.close()

    def _receive(self, frames: list[bytes]) -> None:
        identity = frames[0]
        try:
            if len(frames) != 2:
                raise WireError(f"a message has {len(frames) - 1} frames, but must have exactly one: the header")
            if not self._mailbox.admits(identity):
                raise InputError(REVOKED)
            self._handle(identity, wire.decode(frames[1]))
        except ScopemillError as error:
            self._send(identity, wire.Error.of(error))
        except Exception as error:  # one trainer's message must not end the service of the others
            log.exception("a message could not be handled")
            self._send(
                identity, wire.Error.of(ScopemillError(f"the server failed to handle this message: {type(error).__name__}: {error}"))
            )

    def _handle(self, identity: bytes, message: wire.Message) -> None:
        now = time.monotonic()
        if isinstance(message, wire.Hello):
            self._welcome(identity, message, now)
            return
        peer = self._peers.get(identity)
        if peer is None:
            self._send(identity, wire.Error(wire.NO_HELLO, "this connection has not said HELLO"))
            return
        if isinstance(message, wire.Next):
            self._answer_next(peer, message, now)
        elif isinstance(message, wire.Bye):
            self._forget(peer)
            self._carry_out(peer.stream, peer.stream.window.leave(peer.consumer, now))
            self._close_if_idle(peer.stream)
        else:
            raise WireError(f"a server does not accept {message.kind} messages")

    def _answer_next(self, peer: Peer, message: wire.Next, now: float) -> None:
        stream = peer.stream
        credit = min(message.credit // stream.batch_bytes, MAX_CREDIT_BATCHES)
        if not credit:
            raise WireError(f"a credit of {message.credit} bytes is less than one batch of {stream.batch_bytes} bytes")
        decisions = stream.window.ask(peer.consumer, message.cursor, credit, now)
        stream.memory.end_loans(peer.consumer, stream.window.consumers[peer.consumer].acknowledged)
        self._carry_out(stream, decisions)

    def _welcome(self, identity: bytes, hello: wire.Hello, now: float) -> None:
        if hello.version != wire.VERSION:
            raise WireError(
                f"this server speaks version {wire.VERSION} of the protocol, and the trainer version {hello.version}: "
                "install the same version of scopemill on both"
            )
        stream = self._stream(hello.stream)
        if len(stream.window.consumers) >= MAX_CONSUMERS and hello.consumer not in stream.window.consumers:
            raise WireError(f"stream {hello.stream.label} already has {MAX_CONSUMERS} trainers, the most that this server accepts")
        if (earlier := self._peers.get(identity)) is not None:  # a second HELLO of this connection
            self._lose(earlier)
        if (earlier := self._peers.named(hello.stream, hello.consumer)) is not None:  # an older connection of this trainer
            self._forget(earlier)
        segment = stream.segment if hello.host and hello.host == this_host() else wire.NO_SEGMENT
        self._peers.add(Peer(identity, hello.consumer, stream, segment))
        widths = tuple(stream.manifest.hook(hook).d for hook in hello.stream.hooks)
        skips = self._config.lag == "skip"
        self._send(identity, wire.Welcome(wire.VERSION, widths, stream.manifest.dtype, stream.batches_per_epoch, skips, segment))
        self._carry_out(stream, stream.window.join(hello.consumer, hello.cursor, hello.stop, now))

    def _stream(self, spec: wire.StreamSpec) -> Stream:
        if spec not in self._streams:
            if spec.batch_size < 1 or spec.shards_side_by_side < 1:
                raise InputError(f"stream {spec.label}: batch size and shards side by side must be at least 1")
            if spec.dataset not in self._manifests:
                self._manifests[spec.dataset] = read_manifest(self._bucket, spec.dataset)
            manifest = self._manifests[spec.dataset]
            if len(self._streams) >= self._most_streams:
                raise WireError(
                    f"stream {spec.label} exceeds the limit of {self._most_streams} streams at a time that this server was started with"
                )
            self._streams[spec] = Stream(self._bucket, manifest, spec, self._config, self._window_bytes, self._report)
        return self._streams[spec]

    def _dismiss(self, spec: wire.StreamSpec, consumer: str) -> None:
        if (peer := self._peers.named(spec, consumer)) is not None:
            self._forget(peer)
        if (stream := self._streams.get(spec)) is not None:
            self._carry_out(stream, stream.window.leave(consumer, time.monotonic()))
            self._close_if_idle(stream)

    def _close_if_idle(self, stream: Stream) -> None:
        if not stream.window.consumers and self._streams.get(stream.spec) is stream:
            del self._streams[stream.spec]
            stream.close()

    def _report(self, stream: Stream, index: int, slot: Slot, consumer: str | None, problem: ScopemillError | None) -> None:
        """Post the result of a read; called from a reading thread."""
        self._mailbox.post(lambda: self._read_done(stream, index, slot, consumer, problem))

    def _read_done(self, stream: Stream, index: int, slot: Slot, consumer: str | None, problem: ScopemillError | None) -> None:
        now = time.monotonic()
        if self._streams.get(stream.spec) is not stream:  # closed meanwhile
            return
        if problem is not None:
            log.error("%s", problem)
            stream.window.failed(index, consumer)
            stream.memory.drop(slot)
            for peer in self._peers.all():
                if peer.stream is stream and consumer in (None, peer.consumer):
                    self._send(peer.identity, wire.Error.of(problem))
        elif consumer is None:
            stream.slots[index] = slot
            self._carry_out(stream, stream.window.loaded(index, now))
        else:
            stream.alone[consumer, index] = slot
            self._carry_out(stream, stream.window.loaded_alone(consumer, index, now))
            if (unsent := stream.alone.pop((consumer, index), None)) is not None:
                stream.memory.drop(unsent)

    def _carry_out(self, stream: Stream, decisions: list[Decision]) -> None:
        label = stream.spec.label
        for decision in decisions:
            match decision:
                case Load(index):
                    stream.load(index)
                case LoadAlone(consumer, index):
                    stream.load_alone(consumer, index)
                case Send(consumer, index):
                    self._send_batch(stream, consumer, index)
                case Drop(index):
                    stream.memory.drop(stream.slots.pop(index))
                case Finish(consumer):
                    if (peer := self._peers.named(stream.spec, consumer)) is not None:
                        self._send(peer.identity, wire.End(stream.window.consumers[consumer].stop))
                case Detached(consumer):
                    metrics.SERVER_DETACHED.labels(label).inc()
                    log.warning("%s: trainer %s is behind the window, and its batches are read for it alone", label, consumer)
                case Skipped(consumer, count):
                    metrics.SERVER_SKIPPED.labels(label).inc(count)
                    log.warning("%s: trainer %s is too slow and loses %d batches", label, consumer, count)
                case GaveUp(consumer):
                    metrics.SERVER_LOST.labels(label).inc()
                    log.warning("%s: trainer %s did not connect in time; its place in the window is free", label, consumer)
        metrics.SERVER_WINDOW_BATCHES.labels(label).set(len(stream.slots))
        metrics.SERVER_CONSUMERS.labels(label).set(sum(c.connected for c in stream.window.consumers.values()))

    def _send_batch(self, stream: Stream, consumer: str, index: int) -> None:
        alone = stream.alone.pop((consumer, index), None)
        slot = stream.slots[index] if alone is None else alone
        if (peer := self._peers.named(stream.spec, consumer)) is not None:
            if peer.segment.slots and slot.place is not None:
                sent = self._send(peer.identity, wire.Shared(index, slot.place, int(slot.generation[0])))
                if sent is not None:
                    stream.memory.lend(slot, consumer, index)
            else:
                sent = self._send(peer.identity, wire.Batch(index), slot.memory)
                if sent is not None:
                    slot.sending.append(sent)
            if sent is not None:
                metrics.SERVER_BYTES_SERVED.labels(stream.spec.label).inc(stream.batch_bytes)
        if alone is not None:
            stream.memory.drop(slot)

    def _send(self, identity: bytes, message: wire.Message, body: memoryview | None = None) -> zmq.MessageTracker | None:
        """Send a message; return None, and disconnect the peer soon, if it cannot be reached."""
        peer = self._peers.get(identity)
        try:
            tracker = self._mailbox.send(identity, message, body)
        except zmq.ZMQError as error:  # EHOSTUNREACH: the peer is gone; EAGAIN: it does not read
            log.info("trainer %s cannot be reached: %s", peer.consumer if peer else "(unknown)", error)
            if peer:
                self._mailbox.post(lambda: self._lose(peer))
            return None
        if peer:
            peer.last_sent = time.monotonic()
        return tracker

    def _lose(self, peer: Peer) -> None:
        if self._forget(peer):
            self._carry_out(peer.stream, peer.stream.window.lost(peer.consumer, time.monotonic()))

    def _forget(self, peer: Peer) -> bool:
        """Remove a peer and end its loans; return False if it was removed before."""
        if not self._peers.remove(peer):
            return False
        peer.stream.memory.end_all_loans(peer.consumer)
        self._mailbox.forget(peer.identity)
        return True

    def _tick(self) -> None:
        now = time.monotonic()
        self._mailbox.read_allowed()
        for peer in self._peers.all():
            if not self._mailbox.admits(peer.identity):
                self._send(peer.identity, wire.Error.of(InputError(REVOKED)))
                self._lose(peer)
            elif now - peer.last_sent > HEARTBEAT_SECONDS:
                self._send(peer.identity, wire.Wait("the next batch is not in the window yet"))
        for stream in list(self._streams.values()):
            self._carry_out(stream, stream.window.tick(now))
            stream.stop_private_readers()
            stream.observe(now - self._ticked)
            self._close_if_idle(stream)  # its last expected trainer may have been given up
        self._ticked = now
