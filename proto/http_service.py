"""Serve small answers over HTTP to few clients: connections and time are bounded, whoever asks."""

import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST_CONNECTIONS = 16  # at once; further ones are closed
REQUEST_SECONDS = 10.0  # for a whole connection, from its start to the last byte of the answer


class Service(ThreadingHTTPServer):
    """Listen at an address, and answer each connection in a thread; ``serve`` starts it."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type["Request"]):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def serve(self) -> None:
        """Answer requests from now on, in threads of their own."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection, unless there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that went away or was too slow: that is its own affair."""


class Request(BaseHTTPRequestHandler):
    """Answer one request within `REQUEST_SECONDS`."""

    def setup(self) -> None:
        """Set the time that is left before each read."""
        super().setup()
        self._end = time.monotonic() + REQUEST_SECONDS
        self.rfile = io.BufferedReader(_TimedReader(self.connection, self._end))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""

    def answer(self, body: bytes, kind: str) -> None:
        """Send a body of a content type."""
        self.connection.settimeout(max(0.01, self._end - time.monotonic()))  # for all of it: see socket.sendall
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _TimedReader(socket.SocketIO):
    """Read from a connection until a moment, however many pieces come."""

    def __init__(self, connection: socket.socket, end: float):
        super().__init__(connection, "r")
        self._connection, self._end = connection, end

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(left)
        return super().readinto(buffer)
