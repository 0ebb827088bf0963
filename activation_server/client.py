"""A trainer's end of a stream."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import zmq

from scopemill.activation_server.keys import TrainerKeys
from scopemill.proto import errors, wire
from scopemill.proto.dataset import STORED_DTYPES

CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 60.0  # the server says WAIT every two seconds: this long without a word, it is gone
POLL_SECONDS = 0.25  # how soon a stop is noticed while waiting
ASK_AGAIN_SECONDS = 5.0  # this long without a word, the connection may be a new one, which the server does not know yet
CREDIT_BATCHES = 2  # one in use, one on its way
# Batches on their way are bounded by credit. WAIT comes every two seconds even to a trainer that is busy for long, and
# one whose queue is full answers ZeroMQ's heartbeats no more, so it would pass for dead: this is two days of them.
RECEIVE_QUEUE = 100_000
Find = Callable[[], str]  # where the server is now


class StreamClient:
    """Iterate over ``(k, arrays)`` from ``cursor`` up to ``stop``: one array [B, d] per hook of the stream, as stored.

    k rises by one, but where a server that was told to `skip` left some out; the last batch always comes.
    The arrays are views into the received message, valid until the next one is asked for. bfloat16 comes as its bits
    in uint16. ``waited`` counts the seconds spent waiting for data. ``server`` is an address, or finds it: a server that
    died comes back at another, and the stream goes on there at its cursor. ``keys`` is the folder of `keys`.
    """

    def __init__(self, server: str | Find, spec: wire.StreamSpec, consumer: str, cursor: int, stop: int,
                 stopped: Callable[[], bool] = lambda: False, keys: str | None = None,
                 connect_seconds: float = CONNECT_SECONDS):  # fmt: skip
        self._find = server if callable(server) else lambda: server
        self._spec, self._consumer = spec, consumer
        self._cursor, self._stop, self._stopped = cursor, stop, stopped
        self._keys = TrainerKeys.load(keys) if keys else None
        self.waited = 0.0
        self._address = self._find()
        self._socket = self._connect()
        try:
            frames = self._receive(
                connect_seconds,
                f"no activation server answers at {self._address}: is it running, reachable from here, "
                + ("and is this trainer's key in its allow-list?" if keys else "and without keys?"),
            )
            self._welcome: wire.Welcome = self._expect(wire.decode(frames[0].bytes), wire.Welcome)
        except BaseException:
            self._socket.close()
            raise
        self._dtype = STORED_DTYPES[self._welcome.dtype]
        self.widths, self.dtype = self._welcome.widths, self._welcome.dtype
        self._batch_bytes = spec.batch_size * sum(self.widths) * self._dtype.itemsize

    def __iter__(self) -> Iterator[tuple[int, list[np.ndarray]]]:
        self._ask()
        while True:
            frames = self._receive(SILENCE_SECONDS, f"the activation server at {self._address} has gone silent", self._ask)
            message = wire.decode(frames[0].bytes)
            if isinstance(message, wire.Wait):
                continue
            if isinstance(message, wire.Error) and message.code == wire.NO_HELLO:  # the connection broke, and this is a new one
                self._send(self._hello())
                continue
            if isinstance(message, wire.Welcome):
                self._ask()
                continue
            if isinstance(message, wire.End):
                return
            batch = self._expect(message, wire.Batch)
            due = self._cursor <= batch.index < self._stop if self._welcome.skips else batch.index == self._cursor
            if len(frames) != 2 or len(frames[1]) != self._batch_bytes or not due:
                raise errors.WireError(
                    f"batch {self._cursor} of {self._batch_bytes} bytes was due; batch {batch.index} came in {len(frames)} frames"
                )
            yield batch.index, self._arrays(frames[1])
            self._cursor = batch.index + 1
            self._ask()

    def close(self) -> None:
        """Leave the stream; the window keeps no place for this trainer any more."""
        self._send(wire.Bye(self._cursor))
        self._socket.close()

    def _arrays(self, frame: zmq.Frame) -> list[np.ndarray]:
        flat = np.frombuffer(frame.buffer, dtype=self._dtype)
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
        return socket

    def _hello(self) -> wire.Hello:
        return wire.Hello(wire.VERSION, self._consumer, self._spec, self._cursor, self._stop)

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
