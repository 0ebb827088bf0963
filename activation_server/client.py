"""Read a stream from the activation server, in a trainer."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import zmq

from scopemill.activation_server.keys import TrainerKeys
from scopemill.activation_server.shared_memory import SharedSlotsView, this_host
from scopemill.proto import errors, wire
from scopemill.proto.dataset import STORED_DTYPES

log = logging.getLogger(__name__)
CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 60.0  # the server sends WAIT every two seconds: after this long without a message, it is gone
POLL_SECONDS = 0.25  # longest delay until a stop is noticed while waiting
ASK_AGAIN_SECONDS = 5.0  # after this long without a message, the connection may be a new one, unknown to the server
CREDIT_BATCHES = 2  # one in use, one being sent
# Credit bounds the batches in this queue, but a busy trainer gets a WAIT every two seconds. A trainer with a full queue
# stops to answer ZeroMQ's heartbeats and would be taken for dead: this queue holds two days of WAITs.
RECEIVE_QUEUE = 100_000
Find = Callable[[], str]  # returns the server's current address
M = TypeVar("M", bound=wire.Message)


def copied(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Copy borrowed arrays."""
    return [array.copy() for array in arrays]


class StreamClient:
    """Iterate over ``(k, take(arrays))`` from ``cursor`` to ``stop``, one array [B, d] per hook.

    k rises by one; a server that skips batches (`lag: skip`) may leave some out, but never the last.
    ``take`` gets borrowed arrays and must copy what it keeps: the memory is the message's or the server's, and valid only
    during the call. ``take`` is called again for a batch whose memory was refilled meanwhile, which can happen to a trainer
    that was taken for dead. bfloat16 comes as its bits in uint16. ``waited`` counts the seconds spent waiting for data.
    ``server`` is an address or a function that finds it: a restarted server has another address, and the stream continues
    there at its cursor. ``keys`` is a folder made by `keys.make_keys`.
    """

    def __init__(self, server: str | Find, spec: wire.StreamSpec, consumer: str, cursor: int, stop: int,
                 stopped: Callable[[], bool] = lambda: False, keys: str | None = None,
                 take: Callable[[list[np.ndarray]], Any] = copied, connect_seconds: float = CONNECT_SECONDS):  # fmt: skip
        self._find: Find = server if callable(server) else lambda: server
        self._spec, self._consumer = spec, consumer
        self._cursor, self._stop, self._stopped = cursor, stop, stopped
        self._keys, self._take = TrainerKeys.load(keys) if keys else None, take
        self._host = this_host()
        self._shared: SharedSlotsView | None = None
        self._joined = False  # True once WELCOME has answered the last HELLO
        self.waited = 0.0
        self._address = self._find()
        self._socket = self._connect()
        try:
            frames = self._receive(
                connect_seconds,
                f"no activation server answers at {self._address}: check that it runs, that this host can reach it, "
                + ("and that its allow-list has this trainer's key" if keys else "and that it requires no keys"),
            )
            welcome = self._expect(wire.decode(frames[0].bytes), wire.Welcome)
            self._dtype = STORED_DTYPES[welcome.dtype]
            self.widths, self.dtype, self._skips = welcome.widths, welcome.dtype, welcome.skips
            self._batch_bytes = spec.batch_size * sum(self.widths) * self._dtype.itemsize
            self._accept(welcome)
        except BaseException:
            self._socket.close()
            raise

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        self._ask()
        while True:
            silence = f"the activation server at {self._address} has gone silent: no message for {SILENCE_SECONDS:.0f} s"
            frames = self._receive(SILENCE_SECONDS, silence, self._ask)
            message = wire.decode(frames[0].bytes)
            if isinstance(message, wire.Wait):
                continue
            if isinstance(message, wire.Error) and message.code == wire.NO_HELLO:  # ZeroMQ has reconnected
                self._say_hello()
                continue
            if isinstance(message, wire.Welcome):
                self._accept(message)
                self._ask()
                continue
            if isinstance(message, wire.End):
                return
            batch = self._expect(message, wire.Shared) if len(frames) == 1 else self._expect(message, wire.Batch)
            if not self._joined:  # sent before the server got the last HELLO
                continue
            if not (self._cursor <= batch.index < self._stop if self._skips else batch.index == self._cursor):
                raise errors.WireError(f"the server sent batch {batch.index} instead of batch {self._cursor}")
            taken = self._take_shared(batch) if isinstance(batch, wire.Shared) else (self._take(self._arrays(frames[1].buffer)),)
            if not taken:
                self._say_hello()
                continue
            yield batch.index, taken[0]
            self._cursor = batch.index + 1
            self._ask()

    def close(self) -> None:
        """Leave the stream and free this trainer's place in the window."""
        self._send(wire.Bye(self._cursor))
        self._socket.close()

    def _accept(self, welcome: wire.Welcome) -> None:
        """Open the server's memory, or say HELLO again and ask for bytes."""
        self._joined, self._shared = True, None
        if welcome.segment.slots:
            try:
                self._shared = SharedSlotsView(welcome.segment, self._batch_bytes)
            except (OSError, ValueError, OverflowError) as error:
                log.info(
                    "the shared memory of the server at %s cannot be opened (%s): batches come through the socket", self._address, error
                )
                self._host = ""
                self._say_hello()

    def _say_hello(self) -> None:
        self._joined = False
        self._send(self._hello())

    def _take_shared(self, batch: wire.Shared) -> tuple[Any] | None:
        """Take a batch from the server's memory; return None if its slot was refilled."""
        if self._shared is None or not self._shared.holds(batch.slot, batch.generation):
            return None
        taken = self._take(self._arrays(self._shared.slot(batch.slot)))
        return (taken,) if self._shared.holds(batch.slot, batch.generation) else None

    def _arrays(self, body: memoryview) -> list[np.ndarray]:
        if len(body) != self._batch_bytes:
            raise errors.WireError(f"the server sent a batch of {len(body)} bytes instead of {self._batch_bytes}")
        flat = np.frombuffer(body, dtype=self._dtype)
        ends = np.cumsum([self._spec.batch_size * d for d in self.widths])
        return [part.reshape(self._spec.batch_size, -1) for part in np.split(flat, ends[:-1])]

    def _connect(self) -> zmq.Socket[bytes]:
        """Return a socket connected to the address, on which HELLO was sent."""
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in {zmq.LINGER: 500, zmq.RCVHWM: RECEIVE_QUEUE, zmq.SNDHWM: 64}.items():
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IPV6, "[" in self._address)
        if self._keys:
            self._keys.apply(socket)
        socket.connect(self._address)
        socket.send(wire.encode(self._hello()))
        self._joined = False
        return socket

    def _hello(self) -> wire.Hello:
        return wire.Hello(wire.VERSION, self._consumer, self._spec, self._cursor, self._stop, self._host)

    def _ask(self) -> None:
        self._send(wire.Next(self._cursor, CREDIT_BATCHES * self._batch_bytes))

    def _send(self, message: wire.Message) -> None:
        self._socket.send(wire.encode(message))

    def _receive(self, patience: float, silence: str, ask_again: Callable[[], None] = lambda: None) -> list[zmq.Frame]:
        """Return the next message's frames; raise ServerGone, with the sentence ``silence``, after ``patience`` seconds.

        After ``ASK_AGAIN_SECONDS`` call ``ask_again``, or connect anew to a server that has another address.
        """
        start = asked = time.monotonic()
        try:
            while not self._socket.poll(timeout=int(POLL_SECONDS * 1000)):
                if self._stopped():
                    raise errors.Stopped("stopped while waiting for data")
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

    def _expect(self, message: wire.Message, wanted: type[M]) -> M:
        """Return a message of the wanted kind; raise the error that the server sent instead."""
        if isinstance(message, wire.Error):
            kind = getattr(errors, message.code, errors.ScopemillError)
            raise (kind if isinstance(kind, type) and issubclass(kind, errors.ScopemillError) else errors.ScopemillError)(message.sentence)
        if not isinstance(message, wanted):
            raise errors.WireError(f"the server answered {message.kind} instead of {wanted.kind}")
        return message
