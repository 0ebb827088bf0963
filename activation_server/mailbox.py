"""What reaches the server's one thread: messages of trainers on a ROUTER socket, and tasks of other threads."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue

import zmq

from scopemill.activation_server.keys import ServerKeys
from scopemill.proto import wire

MESSAGES_AT_ONCE = 1000  # taken before anything else is looked after: no trainer's flood stops the others
SOCKET_OPTIONS = {zmq.LINGER: 0, zmq.SNDHWM: 64, zmq.RCVHWM: 64, zmq.MAXMSGSIZE: wire.MAX_HEADER, zmq.ROUTER_MANDATORY: 1}
# ZeroMQ's own heartbeats are answered by its I/O thread: a busy trainer keeps its connection, a dead or frozen one loses it.
LIVENESS = {zmq.HEARTBEAT_IVL: 5000, zmq.HEARTBEAT_TIMEOUT: 30000}


class Mailbox:
    """Bound to a free port of ``host``: see ``address``. All but ``post`` is for the server's thread."""

    def __init__(self, host: str, keys: ServerKeys | None):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (SOCKET_OPTIONS | LIVENESS).items():
            self._socket.setsockopt(option, value)
        self._authenticator = keys.guard(self._socket, self._context) if keys else None
        self.address = f"tcp://{host}:{self._socket.bind_to_random_port(f'tcp://{host}')}"
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_in, self._wake_out = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out.connect("inproc://wake")
        self._wake_lock = threading.Lock()  # guards `_wake_out`, which is closed in the end
        self._closed = False
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_in, zmq.POLLIN)

    def post(self, task: Callable[[], None]) -> None:
        """Have a task done by the server's thread, soon. From any thread."""
        self._tasks.put(task)
        with self._wake_lock, suppress(zmq.Again):  # a full pipe wakes the loop all the same
            if not self._closed:
                self._wake_out.send(b"", zmq.NOBLOCK)

    def receive(self, seconds: float) -> Iterator[list[bytes]]:
        """The messages that come within so long: who sent it (an identity), then its frames. Ends early for a task."""
        for socket, _ in self._poller.poll(timeout=seconds * 1000):
            for _ in range(MESSAGES_AT_ONCE):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                if socket is self._socket:
                    yield frames

    def work_off(self) -> None:
        """Do the tasks that are there now."""
        for _ in range(self._tasks.qsize()):
            self._tasks.get_nowait()()

    def send(self, identity: bytes, message: wire.Message, body: memoryview | None = None) -> zmq.MessageTracker:
        """Without a copy of the body: the tracker tells when it has left. ZMQError: it is gone, or reads nothing of what it asked for."""
        frames = [identity, wire.encode(message)] + ([] if body is None else [body])
        return self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False, track=True)

    def close(self) -> None:
        with self._wake_lock:
            self._closed = True
            if self._authenticator:
                self._authenticator.stop()
            self._context.destroy(linger=0)
