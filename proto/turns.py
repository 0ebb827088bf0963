"""Divide work that leaves its results on this machine among the processes that need them."""

import fcntl
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def by_turns(folder: Path, calls: Mapping[str, Callable[[], object]]) -> None:
    """Make each call once in this process, while no other process makes it.

    What another process has begun comes last: by then its results are there. Locks are files in ``folder``; a process that dies frees
    its own. Without a folder to write to, calls are made at once.
    """
    left = dict(calls)
    for wait in (False, True):
        for name, call in list(left.items()):
            with _turn(folder / f"{re.sub('[^a-z_]', '_', name)}.lock", wait) as free:
                if free:
                    call()
                    del left[name]


@contextmanager
def _turn(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock; yield False if another process has it and we do not ``wait``."""
    try:
        file = path.open("w")
    except OSError:
        yield True
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True
