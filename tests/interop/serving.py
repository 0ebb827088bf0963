"""Labels from a real OpenAI-compatible service on loopback: ``transformers serve``, in the environment of sae-lens.

It serves the demo's language model, or SmolLM2 where `make real` has prepared it. Neither can judge texts well: what is checked is
that the service takes what we send, that its answers are read, and that a second run, a wrong name and a dead service end as they should.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from support import label_world

from scopemill.proto.storage.bucket import Bucket

ROOT = Path(__file__).parents[2]
SMOLLM2, TINY = ROOT / "real-bucket/prepared/SmolLM2-135M-Instruct", ROOT / "deploy/demo/gemma-2-stdlib"
TEMPLATE = "{% for message in messages %}# {{ message['content'] }}\n{% endfor %}"  # the demo's model has none: it never chats
START_SECONDS = 300
REQUESTS = 7  # a label, and whether it fits two texts of the latent, two of others and two of its neighbours
SAE = "sae"


def main(folder: Path, python: str) -> int:
    """Return 0 if labelling by the service did what it should."""
    model = SMOLLM2 if SMOLLM2.exists() else _chatting(folder / "model")
    sae = str(folder / SAE)
    label_world.write(Bucket(str(folder)), SAE)
    with serving(python, model, folder / "served.log") as url:
        first = label(sae, url, str(model), "1")
        again = label(sae, url, str(model), "1")
        other = label(sae, url, "another-model", "2")
    down = label(sae, url, str(model), "1,2", "--patience", "1")
    (row,) = first["labels"]
    checks = {
        "the latent has a label": (bool(row["label"]), row["label"]),
        "each question got its answer": ("error" not in first and first["requests"] == REQUESTS, first.get("error", first["requests"])),
        "a second run sends nothing": (again["requests"] == 0 and again["labels"] == first["labels"], again["requests"]),
        "a wrong name is said": ("pinned to" in other.get("error", "") and not other["labels"], other.get("error", "")),
        "labels outlive the service": ("2" in down["not_done"] and down["labels"] == first["labels"], down.get("error", "")),
    }
    table = Table("labels by transformers serve", "", "found", title=f"{model.name}: {row['unread']} answers that are no verdict")
    for name, (good, found) in checks.items():
        table.add_row(name, "" if good else "differs", str(found))
    Console().print(table)
    return 0 if all(good for good, _ in checks.values()) else 1


@contextlib.contextmanager
def serving(python: str, model: Path, log: Path) -> Iterator[str]:
    """The base URL of a running ``transformers serve``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(python).with_name("transformers"), "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as told:
        server = subprocess.Popen(command, stdout=told, stderr=told, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def _wait(server: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"transformers serve did not start:\n{log.read_text()[-2000:]}")


def label(sae: str, url: str, model: str, latents: str, *options: str) -> dict[str, Any]:
    """What ``scopemill label --json`` tells, with its error."""
    few = ["--methods", "detection", "--contexts", "2", "--shown", "4", "--texts", "1", "--timeout", "120"]
    asked = ["--endpoint", url, "--model", model, "--latents", latents]
    command = [sys.executable, "-m", "scopemill.deploy", "label", sae, *asked, *few, "--json", *options]
    ran = subprocess.run(command, capture_output=True, text=True)
    if not ran.stdout.startswith("{"):
        raise SystemExit(f"scopemill label failed: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout) | ({"error": ran.stderr.strip()} if ran.returncode else {})


def _chatting(folder: Path) -> Path:
    """A copy of the demo's model that takes messages."""
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.exit(main(Path(place), sys.argv[1]))
