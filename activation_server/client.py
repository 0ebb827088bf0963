"""A trainer's end of a stream."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zmq

from scopemill.activation_server.keys import TrainerKeys
from scopemill.activation_server.shared_memory import RingView, this_host
from scopemill.proto import errors, wire
from scopemill.proto.dataset import STORED_DTYPES

log = logging.getLogger(__name__)
CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 60.0  # the server says WAIT every two seconds: this long without a word, it is gone
POLL_SECONDS = 0.25  # how soon a stop is noticed while waiting
ASK_AGAIN_SECONDS = 5.0  # this long without a word, the connection may be a new one, which the server does not know yet
CREDIT_BATCHES = 2  # one in use, one on its way
# Batches on their way are bounded by credit. WAIT comes every two seconds even to a trainer that is busy for long, and
# one whose queue is full answers ZeroMQ's heartbeats no more, so it would pass for dead: this is two days of them.
RECEIVE_QUEUE = 100_000
Find = Callable[[], str]  # where the server is now


def copied(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array.copy() for array in arrays]


class StreamClient:
    """Iterate over ``(k, take(arrays))`` from ``cursor`` up to ``stop``: one array [B, d] per hook of the stream, as stored.

    k rises by one, but where a server that was told to `skip` left some out; the last batch always comes.
    ``take`` makes of the arrays what is the caller's own: they lie in the received message or in the server's own memory,
    and are valid only meanwhile. It may be called again for a batch whose memory was used anew under it, which befalls a
    trainer that was taken for dead. bfloat16 comes as its bits in uint16. ``waited`` counts the seconds spent waiting for
    data. ``server`` is an address, or finds it: a server that died comes back at another, and the stream goes on there at
    its cursor. ``keys`` is the folder of `keys`.
    """

    def __init__(self, server: str | Find, spec: wire.StreamSpec, consumer: str, cursor: int, stop: int,
                 stopped: Callable[[], bool] = lambda: False, keys: str | None = None,
                 take: Callable[[list[np.ndarray]], Any] = copied, connect_seconds: float = CONNECT_SECONDS):  # fmt: skip
        self._find = server if callable(server) else lambda: server
        self._spec, self._consumer = spec, consumer
        self._cursor, self._stop, self._stopped = cursor, stop, stopped
        self._keys, self._take = TrainerKeys.load(keys) if keys else None, take
        self._host, self._ring = this_host(), None
        self.waited = 0.0
        self._address = self._find()
        self._socket = self._connect()
        try:
            frames = self._receive(
                connect_seconds,
                f"no activation server answers at {self._address}: is it running, reachable from here, "
                + ("and is this trainer's key in its allow-list?" if keys else "and without keys?"),
            )
            welcome: wire.Welcome = self._expect(wire.decode(frames[0].bytes), wire.Welcome)
            self._dtype = STORED_DTYPES[welcome.dtype]
            self.widths, self.dtype, self._skips = welcome.widths, welcome.dtype, welcome.skips
            self._batch_bytes = spec.batch_size * sum(self.widths) * self._dtype.itemsize
            self._enter(welcome)
        except BaseException:
            self._socket.close()
            raise

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        self._ask()
        while True:
            frames = self._receive(SILENCE_SECONDS, f"the activation server at {self._address} has gone silent", self._ask)
            message = wire.decode(frames[0].bytes)
            if isinstance(message, wire.Wait):
                continue
            if isinstance(message, wire.Error) and message.code == wire.NO_HELLO:  # the connection broke, and this is a new one
                self._say_hello()
                continue
            if isinstance(message, wire.Welcome):
                self._enter(message)
                self._ask()
                continue
            if isinstance(message, wire.End):
                return
            batch = self._expect(message, wire.Shared if len(frames) == 1 else wire.Batch)
            if not self._entered:  # it was sent to who we were before the HELLO that is on its way
                continue
            if not (self._cursor <= batch.index < self._stop if self._skips else batch.index == self._cursor):
                raise errors.WireError(f"batch {self._cursor} was due; batch {batch.index} came")
            taken = self._taken_from_ring(batch) if isinstance(batch, wire.Shared) else (self._take(self._arrays(frames[1].buffer)),)
            if not taken:
                self._say_hello()
                continue
            yield batch.index, taken[0]
            self._cursor = batch.index + 1
            self._ask()

    def close(self) -> None:
        """Leave the stream; the window keeps no place for this trainer any more."""
        self._send(wire.Bye(self._cursor))
        self._socket.close()

    def _enter(self, welcome: wire.Welcome) -> None:
        """We have a place in the window. If the server offers its memory, and it cannot be opened, we say that we want the bytes."""
        self._entered, self._ring = True, None
        if welcome.segment.slots:
            try:
                self._ring = RingView(welcome.segment, self._batch_bytes)
            except (OSError, ValueError, OverflowError) as error:
                log.info("the memory of the server at %s cannot be opened (%s): batches come through the socket", self._address, error)
                self._host = ""
                self._say_hello()

    def _say_hello(self) -> None:
        self._entered = False
        self._send(self._hello())

    def _taken_from_ring(self, batch: wire.Shared) -> tuple[Any] | None:
        """What is made of a batch in the server's memory; None if it lies there no more."""
        if self._ring is None or not self._ring.holds(batch.slot, batch.generation):
            return None
        taken = self._take(self._arrays(self._ring.slot(batch.slot)))
        return (taken,) if self._ring.holds(batch.slot, batch.generation) else None

    def _arrays(self, body: memoryview) -> list[np.ndarray]:
        if len(body) != self._batch_bytes:
            raise errors.WireError(f"a batch of {len(body)} bytes came where {self._batch_bytes} were due")
        flat = np.frombuffer(body, dtype=self._dtype)
        ends = np.cumsum([self._spec.batch_size * d for d in self.widths])
        return [part.reshape(self._spec.batch_size, -1) for part in np.split(flat, ends[:-1])]

    def _connect(self) -> zmq.Socket:
        """A socket that has said HELLO to the address."""
        socket = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in {zmq.LINGER: 500, zmq.RCVHWM: RECEIVE_QUEUE, zmq.SNDHWM: 64}.items():
            socket.setsockopt(option, value)
        if self._keys:
            self._keys.show(socket)
        socket.connect(self._address)
        socket.send(wire.encode(self._hello()))
        self._entered = False
        return socket

    def _hello(self) -> wire.Hello:
        return wire.Hello(wire.VERSION, self._consumer, self._spec, self._cursor, self._stop, self._host)

    def _ask(self) -> None:
        self._send(wire.Next(self._cursor, CREDIT_BATCHES * self._batch_bytes))

    def _send(self, message: wire.Message) -> None:
        self._socket.send(wire.encode(message))

    def _receive(self, patience: float, silence: str, ask_again: Callable[[], None] = lambda: None) -> list[zmq.Frame]:
        start = asked = time.monotonic()
        try:
            while not self._socket.poll(timeout=int(POLL_SECONDS * 1000)):
                if self._stopped():
                    raise errors.Stopped("asked to stop while waiting for data")
                now = time.monotonic()
                if now - start > patience:
                    raise errors.ServerGone(silence)
                if now - asked > ASK_AGAIN_SECONDS:
                    if (address := self._find()) == self._address:
                        ask_again()
                    else:
                        self._socket.close(linger=0)
                        self._address = address
                        self._socket = self._connect()
                    asked = now
            return self._socket.recv_multipart(copy=False)
        finally:
            self.waited += time.monotonic() - start

    def _expect(self, message: wire.Message, wanted: type):
        if isinstance(message, wire.Error):
            kind = getattr(errors, message.code, errors.ScopemillError)
            raise (kind if isinstance(kind, type) and issubclass(kind, errors.ScopemillError) else errors.ScopemillError)(message.sentence)
        if not isinstance(message, wanted):
            raise errors.WireError(f"the server answered {message.kind} where {wanted.kind} belongs")
        return message
