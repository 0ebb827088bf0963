"""Kill this process at a chosen call, or damage its files; loaded by every Python process of a chaos run, Ray's workers too.

The folder ``SCOPEMILL_CHAOS`` holds ``order.json`` (the row to carry out), ``struck`` once that was done, and ``journal``:
a line for every batch that a trainer received.
"""

import functools
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("SCOPEMILL_CHAOS", "."))
WATCHED = {
    "scopemill.proto.storage.bucket": ("Bucket", ("write", "create")),
    "scopemill.harvester.shard": ("ShardBuffers", ("put",)),
    "scopemill.trainer.training.loop": ("Loop", ("step",)),
    "scopemill.activation_server.server": ("ActivationServer", ("_send_batch",)),
    "scopemill.activation_server.client": ("StreamClient", ()),
}
calls: dict[str, int] = {}
written: set[tuple[int, int]] = set()  # files by device and number
synced: set[tuple[int, int]] = set()
unsynced: dict[str, set[str]] = {}  # by folder: names since its last sync


def strike(call: str, when: str, arguments: tuple[Any, ...]) -> None:
    """Carry out the order if this is its call; only one process of a run ever does."""
    try:
        order = json.loads((FOLDER / "order.json").read_text())
    except FileNotFoundError:
        return
    if (call, when) != (order["call"], order["when"]) or not re.search(
        order["where"], " ".join(a for a in arguments if isinstance(a, str))
    ):
        return
    calls[call] = calls.get(call, 0) + 1
    if calls[call] != order["nth"]:
        return
    try:
        os.close(os.open(FOLDER / "struck", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    match order["victim"]:
        case "self":
            os.kill(os.getpid(), signal.SIGKILL)
        case "shards":  # nobody dies
            shutil.rmtree(Path(order["bucket"], "activations/tiny/shards"))
        case "connection":  # nobody dies
            cut_connections()
        case "checkpoint":
            weights = Path(order["bucket"], str(arguments[0])).with_name("weights.safetensors")
            whole = weights.read_bytes()
            weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            os.kill(os.getpid(), signal.SIGKILL)
        case "power":
            cut_power()
            os.kill(os.getppid(), signal.SIGKILL)
        case "raylet":
            os.kill(os.getppid(), signal.SIGKILL)
        case "driver":  # `run.py` kills the driver as soon as ``struck`` exists; until then this process waits
            time.sleep(60)


def cut_power() -> None:
    """Take what this process has written and not synced: names, or else the bytes behind them."""
    for names in unsynced.values():
        for name in names:
            Path(name).unlink(missing_ok=True)
    for place in Path(json.loads((FOLDER / "order.json").read_text())["bucket"]).rglob("*"):
        if place.is_file() and number(place) in written - synced:
            place.write_bytes(b"")


def cut_connections() -> None:
    """Shut down this trainer's connections to other trainers; those of Ray and of the activation server stay."""
    import psutil

    def trainer(process: psutil.Process) -> bool:
        return any("Trainer" in word for word in process.cmdline()[:1])

    mine = psutil.Process()
    theirs = {
        c.laddr: process for process in psutil.process_iter() if trainer(process) and process != mine for c in process.net_connections()
    }
    for connection in mine.net_connections():
        if connection.raddr and connection.raddr in theirs:
            with socket.socket(fileno=os.dup(connection.fd)) as cut:
                cut.shutdown(socket.SHUT_RDWR)


def number(place: int | str | Path) -> tuple[int, int]:
    status = os.stat(place)
    return status.st_dev, status.st_ino


def noting_syncs() -> None:
    """Note what is written and synced, for `cut_power`."""
    fsync, replace, link = os.fsync, os.replace, os.link

    def noted_fsync(file: int) -> None:
        fsync(file)
        synced.add(number(file))
        unsynced.pop(os.path.realpath(f"/proc/self/fd/{file}"), None)

    def noted_name(name: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any) -> None:
            written.add(number(source))
            name(source, target)
            unsynced.setdefault(os.path.realpath(os.path.dirname(target)), set()).add(str(target))

        return call

    os.fsync, os.replace, os.link = noted_fsync, struck_before(noted_name(replace)), noted_name(link)


def watched(cls: type, name: str) -> None:
    method = getattr(cls, name)

    @functools.wraps(method)
    def call(self, *arguments, **options):
        strike(f"{cls.__name__}.{name}", "before", arguments)
        result = method(self, *arguments, **options)
        strike(f"{cls.__name__}.{name}", "after", arguments)
        return result

    setattr(cls, name, call)


def struck_before(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        strike("os.replace", "before", arguments)
        return function(*arguments)

    return call


def journalled(client: Any) -> None:
    batches = client.__iter__

    def noted(self):
        with open(FOLDER / "journal", "a", buffering=1) as journal:
            for k, taken in batches(self):
                (x, *_), _ = taken
                journal.write(f"{os.getpid()} {self._consumer} {k} {zlib.crc32(x.numpy().tobytes())}\n")
                yield k, taken

    client.__iter__ = noted


class Watch:
    """Import the watched modules as usual, and then wrap their methods."""

    @staticmethod
    def find_spec(name, path, target=None):
        if name not in WATCHED:
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            kind, methods = WATCHED[name]
            cls = getattr(module, kind)
            for method in methods:
                watched(cls, method)
            if kind == "StreamClient":
                journalled(cls)
            if kind == "Bucket":  # here a local object is whole on disk, and not yet in its place
                noting_syncs()

        spec.loader.exec_module = exec_module
        return spec


if "SCOPEMILL_CHAOS" in os.environ:
    sys.meta_path.insert(0, Watch)
