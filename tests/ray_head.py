"""A Ray cluster as an operator starts it, with the Jobs API and token authentication, on loopback and in a folder of its own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_SECONDS = 90


@contextmanager
def ray_head(cpus: int = 4) -> Iterator[tuple[str, dict[str, str]]]:
    """The dashboard's address, and the environment of those who know the token."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # jobs call ``python``
    folder = tempfile.mkdtemp(prefix="mill-", dir="/tmp")  # short: the paths of Ray's sockets have to fit in 107 bytes
    gcs, dashboard, agent, client = free_ports(4)
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
               f"--temp-dir={folder}", f"--num-cpus={cpus}", "--object-store-memory=134217728", f"--dashboard-port={dashboard}",
               f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]  # fmt: skip
    with open(Path(folder) / "ray-start.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_up(process, f"http://127.0.0.1:{dashboard}/api/version", environment["RAY_AUTH_TOKEN"])
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        process.send_signal(signal.SIGTERM)  # with --block it ends its processes
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen, url: str, token: str) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
