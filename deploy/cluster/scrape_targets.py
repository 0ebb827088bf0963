"""List the processes of a sweep that expose metrics.

The list is a file on this machine, and served over HTTP beyond it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from scopemill.proto import metrics
from scopemill.proto.config import LOOPBACK
from scopemill.proto.errors import InputError
from scopemill.proto.http_service import Request, Service
from scopemill.proto.runtime import replace_file

POLL_SECONDS = 0.1
LAST_WORD_SECONDS = 15.0  # in which Prometheus should ask again; ours asks every ten


def expose(_: Any, beyond: bool) -> str:
    """Expose this process' metrics and return ``host:port``.

    With ``beyond``, the host is the node's address and machines beyond this one reach it; else loopback.
    """
    return metrics.expose(_node_address() if beyond else LOOPBACK)


class Targets:
    """Keep the list of processes to scrape, in the file ``path``.

    With a ``port`` the list is also served over HTTP. Use as a ``with`` block inside a cluster: the driver's own process is
    listed for the length of the block.
    """

    def __init__(self, path: Path | None, sweep: str, port: int | None = None):
        """``path`` None: in the user's own folder of the temporary directory."""
        self.path, self.beyond = path, port is not None
        self._sweep, self._port = sweep, port
        self._addresses: dict[str, list[str]] = {}  # by role
        self._discovery: Discovery | None = None
        self._problem = ""  # why the file cannot be written

    @property
    def places(self) -> str:
        """Return the file and the URL of the list, for people to read."""
        file = f"no file ({self._problem})" if self._problem else str(self.path)
        return f"{file} and at {self._discovery.url}" if self._discovery else file

    def set(self, role: str, addresses: list[str]) -> None:
        """Replace the addresses of one role, and publish the list.

        A sweep goes on if the file cannot be written.
        """
        self._addresses[role] = addresses
        text = metrics.listed(self._sweep, {role: a for role, a in self._addresses.items() if a})
        try:
            self.path = self.path or metrics.targets_folder() / f"{self._sweep}.json"
            replace_file(self.path, text)
            self._problem = ""
        except (OSError, InputError) as error:
            self._problem = str(error)
        if self._discovery:
            self._discovery.publish(text)

    def __enter__(self) -> "Targets":
        if self._port:
            self._discovery = Discovery(_node_address(), self._port)
        self.set("driver", [expose(None, self.beyond)])
        return self

    def __exit__(self, *_: Any) -> None:
        self.set("driver", [])  # so that no alert fires when the driver answers no more
        if self._discovery:
            self._discovery.close()


class Discovery:
    """Serve the newest list at ``GET /targets``, as Prometheus' `http_sd` asks for it.

    Raises InputError if the port is taken.
    """

    def __init__(self, host: str, port: int):
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise InputError(
                f"metrics_port: port {port} of {host} cannot be listened on, {error.strerror}: give each sweep that runs at the same time "
                "a port of its own"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/targets"
        self._server.serve()

    def publish(self, text: str) -> None:
        """Answer requests with this list from now on."""
        self._server.body = text.encode()

    def close(self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        """Stop serving, after Prometheus has had time to fetch the last list.

        Prometheus keeps the newest answer for good, so the last one has to be fetched. Without an earlier request there is no wait.
        """
        deadline = clock() + LAST_WORD_SECONDS
        while self._server.sent not in (None, self._server.body) and clock() < deadline:
            sleep(POLL_SECONDS)
        self._server.shutdown()
        self._server.server_close()


class _Server(Service):
    body = b"[]"
    sent: bytes | None = None  # the newest answer


class _Handler(Request):
    server: _Server

    def do_GET(self) -> None:
        if self.path != "/targets":
            return self.send_error(404)
        body = self.server.body
        self.answer(body, "application/json")
        self.server.sent = body


def _node_address() -> str:
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address
