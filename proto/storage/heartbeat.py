"""Judge heartbeats: whether another's lease lapsed, and whether one's own still holds.

Both judgements are pure and use one clock each, so clocks of different machines need not agree. A holder whose heartbeat was not
written for ``LIFE_SECONDS`` has lost its lease; others take over once they have watched one unchanged heartbeat for
``STALE_SECONDS``, which is longer. So never do two hold a lease at once.
"""

import getpass
import json
import os
import socket
import time
import uuid
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

BEAT_SECONDS, LIFE_SECONDS, STALE_SECONDS = 10.0, 40.0, 60.0
Life = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True)
class Holder:
    """Describe a process that holds a lease, for people and other processes."""

    user: str
    host: str
    pid: int
    since: str  # UTC
    machine: str  # the boot and the process namespace in which pid means something; empty where the system does not tell
    born: str  # when the process started, in the system's ticks: another process may get the same pid later
    token: str  # tells two leases of one process apart

    @staticmethod
    def myself() -> "Holder":
        """Return a description of this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user without a name
            user = f"user {os.getuid()}"
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        pid = os.getpid()
        return Holder(user, socket.gethostname(), pid, since, _machine(), _born(pid) or "", uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"{self.user} on {self.host} (process {self.pid}, since {self.since})"

    @property
    def life(self) -> Life:
        """Return whether the process lives, as far as this machine knows."""
        if not self.machine or self.machine != _machine():
            return "unknown"
        return "alive" if _born(self.pid) == self.born else "dead"


@dataclass(frozen=True)
class Heartbeat:
    """Hold the content of a heartbeat object."""

    holder: Holder
    count: int
    released: bool = False

    def to_bytes(self) -> bytes:
        """Return the object's bytes."""
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def parse(data: bytes) -> "Heartbeat | None":
        """Return a heartbeat; None for bytes that are none, such as a damaged object."""
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            fields = json.loads(data)
            return Heartbeat(Holder(**fields.pop("holder")), **fields)
        return None


class Watch:
    """Judge from repeated sights of heartbeats whether their holders live."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[bytes, float]] = {}

    def see(self, place: Hashable, data: bytes, clock: float) -> Life:
        """Note the heartbeat at a place, read at this moment in seconds."""
        beat = Heartbeat.parse(data)
        if beat and beat.released:
            return "dead"
        if beat and (life := beat.holder.life) != "unknown":
            return life
        before, since = self._seen.setdefault(place, (data, clock))
        if before != data:
            self._seen[place] = (data, clock)
            return "alive"
        return "dead" if clock - since > STALE_SECONDS else "unknown"


class Tenure:
    """Judge by the holder's own clock, in seconds, whether its lease still holds."""

    def __init__(self, started: float, ended: float):
        self.until = started + LIFE_SECONDS
        self.beaten(started, ended)

    def beaten(self, started: float, ended: float) -> bool:
        """Note a heartbeat written between these moments; return False if too late."""
        if ended > self.until:  # others may have seen the old heartbeat for too long already
            self.until = float("-inf")
            return False
        self.until = started + LIFE_SECONDS
        return True

    def holds(self, clock: float) -> bool:
        """Return True while no other can have taken over."""
        return clock <= self.until


def now() -> float:
    """Return the seconds of a clock that never jumps.

    It goes on while the machine sleeps, if the system has such a clock.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@cache
def _machine() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if fields[0] in "ZX" else fields[19]  # a zombie does nothing any more
