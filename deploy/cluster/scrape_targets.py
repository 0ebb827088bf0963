"""Which processes of a sweep expose metrics now, told to Prometheus: in a file on this machine, and by HTTP beyond it."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ray

from scopemill.proto import metrics
from scopemill.proto.config import LOOPBACK
from scopemill.proto.errors import InputError

POLL_SECONDS = 0.1
REQUEST_SECONDS = 10.0  # in which a request has to arrive
LAST_WORD_SECONDS = 15.0  # in which Prometheus should ask again; ours does every ten


def expose(_: Any, beyond: bool) -> str:
    """Expose this process' metrics, at its node's address if they are asked for from beyond it; returns ``host:port``."""
    return metrics.expose(ray.util.get_node_ip_address() if beyond else LOOPBACK)


class Targets:
    """The list. For the length of a ``with``, inside a cluster, the driver's own process is on it, and ``port`` answers if there is one."""

    def __init__(self, path: Path, sweep: str, port: int | None = None):
        self.path, self.beyond = path, port is not None
        self._sweep, self._port = sweep, port
        self._addresses: dict[str, list[str]] = {}
        self._discovery: Discovery | None = None

    @property
    def places(self) -> str:
        """Where the list is, for people."""
        return f"{self.path} and at {self._discovery.url}" if self._discovery else str(self.path)

    def set(self, role: str, addresses: list[str]) -> None:
        self._addresses[role] = addresses
        text = metrics.listed(self._sweep, {role: a for role, a in self._addresses.items() if a})
        metrics.write_targets(self.path, text)
        if self._discovery:
            self._discovery.tell(text)

    def __enter__(self) -> "Targets":
        if self._port:
            self._discovery = Discovery(ray.util.get_node_ip_address(), self._port)
        self.set("driver", [expose(None, self.beyond)])
        return self

    def __exit__(self, *_: Any) -> None:
        self.set("driver", [])  # nothing is amiss when it answers no more
        if self._discovery:
            self._discovery.close()


class Discovery:
    """Answers ``GET /targets`` with what it was told last, as Prometheus' `http_sd` asks. InputError if the port cannot be had."""

    def __init__(self, host: str, port: int):
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise InputError(
                f"metrics_port: port {port} of {host} cannot be listened on, {error.strerror}: of sweeps that run at the same time each "
                "takes its own"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/targets"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def tell(self, text: str) -> None:
        self._server.body = text.encode()

    def close(self) -> None:
        """Prometheus holds on to the last answer that it got, so it is given time to hear the last word, if it ever asked."""
        deadline = time.monotonic() + LAST_WORD_SECONDS
        while self._server.heard not in (None, self._server.body) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    body = b"[]"
    heard: bytes | None = None  # the answer that was given last


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        if self.path != "/targets":
            return self.send_error(404)
        body = self.server.body
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.heard = body

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """The driver's log is the sweep's."""
