"""Start a Ray cluster of two nodes on loopback, as an operator does, with the Jobs API and token authentication.

Each node has its own address, so the address of a process tells its node. The second node has a label.
"""

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

START_SECONDS, END_SECONDS = 90, 90
FIRST, SECOND = "127.0.0.2", "127.0.0.3"  # instead of 127.0.0.1 Ray would take the machine's own address
LABEL = {"room": "second"}


@contextmanager
def ray_head() -> Iterator[tuple[str, dict[str, str]]]:
    """Start two nodes of one CPU each; yield the dashboard's address and an environment that holds the token."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    environment["PIP_NO_DEPS"] = "1"  # Ray installs a job's wheel by pip; its dependencies are installed already
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # jobs call ``python``
    folder = tempfile.mkdtemp(prefix="mill-", dir="/tmp")  # short: the paths of Ray's sockets have to fit in 107 bytes
    gcs, dashboard, client, *agents = free_ports(5)
    head = ["--head", f"--port={gcs}", f"--temp-dir={folder}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    with ExitStack() as nodes:
        nodes.callback(shutil.rmtree, folder, ignore_errors=True)
        process = nodes.enter_context(_node(FIRST, [*head, f"--dashboard-agent-listen-port={agents[0]}"], environment))
        _wait_until_up(process, f"http://127.0.0.1:{dashboard}/api/version", environment["RAY_AUTH_TOKEN"])
        labels = ",".join(f"{name}={value}" for name, value in LABEL.items())
        other = [f"--address={FIRST}:{gcs}", f"--labels={labels}", f"--dashboard-agent-listen-port={agents[1]}"]
        nodes.enter_context(_node(SECOND, other, environment))
        yield f"http://127.0.0.1:{dashboard}", environment


@contextmanager
def _node(address: str, options: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={address}", "--num-cpus=1",
               "--object-store-memory=134217728", *options]  # fmt: skip
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)  # with --block, ray ends the processes of the node
        process.wait(END_SECONDS)


def _wait_until_up(process: subprocess.Popen[bytes], url: str, token: str) -> None:
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
