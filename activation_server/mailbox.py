"""Receive trainers' messages and other threads' tasks for the server's thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue

import zmq

from scopemill.activation_server.keys import ServerKeys
from scopemill.proto import wire

MESSAGES_AT_ONCE = 1000  # handled per round: a flood from one trainer must not stop the tasks
SOCKET_OPTIONS = {zmq.LINGER: 0, zmq.SNDHWM: 64, zmq.RCVHWM: 64, zmq.MAXMSGSIZE: wire.MAX_HEADER, zmq.ROUTER_MANDATORY: 1}
# ZeroMQ's I/O thread answers these heartbeats: a busy trainer keeps its connection, a dead or frozen trainer loses it.
LIVENESS = {zmq.HEARTBEAT_IVL: 5000, zmq.HEARTBEAT_TIMEOUT: 30000}


class Mailbox:
    """Own the ROUTER socket, bound to a free port of ``host``; ``address`` is its address.

    Only ``post`` may be called from another thread than the server's.
    """

    def __init__(self, host: str, keys: ServerKeys | None):
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (SOCKET_OPTIONS | LIVENESS).items():
            self._socket.setsockopt(option, value)
        self._keys, self._authenticator = keys, keys.guard(self._socket, self._context) if keys else None
        self._key_of: dict[bytes, str] = {}  # the public key by which each connection was let in
        self._allowed = keys.allowed_now() if keys else frozenset[str]()
        place = f"tcp://[{host}]" if ":" in host else f"tcp://{host}"
        self._socket.setsockopt(zmq.IPV6, ":" in host)
        self.address = f"{place}:{self._socket.bind_to_random_port(place)}"
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_in, self._wake_out = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out.connect("inproc://wake")
        self._wake_lock = threading.Lock()  # guards `_wake_out` against its closing
        self._closed = False
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_in, zmq.POLLIN)

    def post(self, task: Callable[[], None]) -> None:
        """Hand a task to the server's thread. May be called from any thread."""
        self._tasks.put(task)
        with self._wake_lock, suppress(zmq.Again):  # a full pipe wakes the loop too
            if not self._closed:
                self._wake_out.send(b"", zmq.NOBLOCK)

    def receive(self, seconds: float) -> Iterator[list[bytes]]:
        """Yield messages that arrive within a time: the sender's identity, then frames.

        A posted task ends the wait early.
        """
        for socket, _ in self._poller.poll(timeout=int(seconds * 1000)):
            for _ in range(MESSAGES_AT_ONCE):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                if socket is self._socket:
                    if self._keys:
                        self._key_of[frames[0].bytes] = str(frames[0].get("User-Id"))
                    yield [frame.bytes for frame in frames]

    def read_allowed(self) -> None:
        """Read the allow-list again."""
        if self._keys:
            self._allowed = self._keys.allowed_now()

    def admits(self, identity: bytes) -> bool:
        """Return True unless the key of a connection has been taken out of the allow-list."""
        if self._keys is None:
            return True
        if self._key_of.get(identity) not in self._allowed:  # perhaps it was added since the list was read
            self.read_allowed()
        return self._key_of.get(identity) in self._allowed

    def forget(self, identity: bytes) -> None:
        """Forget the key of a connection that is gone."""
        self._key_of.pop(identity, None)

    def run_tasks(self) -> None:
        """Run the tasks posted so far."""
        for _ in range(self._tasks.qsize()):
            self._tasks.get_nowait()()

    def send(self, identity: bytes, message: wire.Message, body: memoryview | None = None) -> zmq.MessageTracker | None:
        """Send a message without a copy of its body.

        The tracker is done once ZeroMQ has sent the body. Raises ZMQError for a peer that is gone or does not read.
        """
        frames = [identity, wire.encode(message)] + ([] if body is None else [body])
        return self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False, track=True)

    def close(self) -> None:
        """Close all sockets at once."""
        with self._wake_lock:
            self._closed = True
            if self._authenticator:
                self._authenticator.stop()
            self._context.destroy(linger=0)
