"""Refuse every attempt to install packages while a model is loaded.

TransformerLens runs pip or uv when a model's image processor lacks a package, which can replace torch itself under a running sweep.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_PROGRAMS = {"pip", "pip3", "uv", "conda", "mamba", "micromamba", "easy_install", "poetry", "pipx", "apt", "apt-get"}
_VERBS = {"install", "add", "sync", "update", "upgrade"}
_EVENTS = {"subprocess.Popen": 1, "os.exec": 1, "os.posix_spawn": 1, "os.system": 0}  # the place of the command among the event's arguments
_state = threading.local()  # `refused`: the commands that were refused in this thread's present block


@contextlib.contextmanager
def nothing_installed() -> Iterator[list[str]]:
    """Refuse installers in the block's thread, and yield the list of what was refused."""
    _listen()
    before, _state.refused = getattr(_state, "refused", None), []
    try:
        yield _state.refused
    finally:
        _state.refused = before


def _listen() -> None:
    if not _listening:
        _listening.append(True)
        sys.addaudithook(_refuse)  # cannot be removed; outside a block it does nothing


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    refused = getattr(_state, "refused", None) if event in _EVENTS else None
    if refused is None:
        return
    command = arguments[_EVENTS[event]]
    words = [os.fsdecode(word) for word in command] if isinstance(command, list | tuple) else os.fsdecode(str(command)).split()
    if _PROGRAMS & {os.path.basename(word) for word in words} and _VERBS & set(words):
        refused.append(" ".join(words))
        raise PermissionError(f"a run installs nothing; refused: {refused[-1]}")


_listening: list[bool] = []
