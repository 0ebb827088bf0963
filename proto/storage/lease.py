"""Hold a lease on the bucket.

Two runs that would disturb each other learn of each other by name. A lease is a folder. Exclusive holders are numbered: ``00007.json`` is
created once, by one of several that try, and the highest number holds. ``00007.beat`` is its heartbeat. Shared holders have a heartbeat
each, ``shared-<token>.beat``, and exclude exclusive ones only.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from scopemill.proto.errors import Conflict, MissingObject, StorageError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.heartbeat import BEAT_SECONDS, Heartbeat, Holder, Life, Tenure, Watch, now

_NUMBER = re.compile(r"(\d{5,})\.json")
_SHARED = re.compile(r"shared-\w+\.beat")


@dataclass(frozen=True)
class Rival:
    """Describe who else has a lease, and whether that process is known to live."""

    holder: Holder | None  # None: its record is damaged
    life: Life

    def __str__(self) -> str:
        return str(self.holder) if self.holder else "a process whose record is damaged"


class Lease:
    """Take, keep and release one lease; ``what`` names it for people.

    While a taken lease is kept in a ``with`` block, a thread writes its heartbeat. If the lease is lost, ``on_lost`` is called once
    from another thread, and the block ends with Conflict. All requests may raise StorageError.
    """

    def __init__(
        self,
        bucket: Bucket,
        root: str,
        what: str,
        shared: bool = False,
        on_lost: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = now,
    ):
        self.what = what
        self._bucket, self._root, self._shared, self._on_lost, self._clock = bucket, root, shared, on_lost, clock
        self._holder, self._count = Holder.myself(), 0
        self._watch = Watch()
        self._number = 0  # of an exclusive holder
        self._tenure: Tenure | None = None
        self._lost = ""  # why
        self._ending = threading.Event()
        self._beating = threading.Thread(target=self._keep_beating, daemon=True)
        self._watching = threading.Thread(target=self._keep_watching, daemon=True)

    def attempt(self) -> Rival | None:
        """Take the lease if it is free; else return who has it.

        A rival of unknown life is to be looked at again: its heartbeat will go on, or be stale.
        """
        names = self._bucket.names(self._root)
        if rival := self._rival_among(names):
            return rival
        started = self._clock()
        if self._shared:
            self._bucket.write(self._beat_path, self._heartbeat())
        else:
            number = _newest(names) + 1  # after the holder that was judged: another that came meanwhile has this number
            if not self._bucket.create(f"{self._root}/{number:05d}.json", self._heartbeat()):
                return Rival(None, "unknown")
            self._number = number
        rival = self.rival()  # one that came at the same moment: who sees the other gives way
        tenure = Tenure(started, self._clock())
        if rival or not tenure.holds(self._clock()):
            self._give_up()
            return rival or Rival(None, "unknown")
        self._tenure = tenure
        self._forget_older()
        return None

    def rival(self) -> Rival | None:
        """Return a holder that this lease excludes, unless it is dead; take nothing."""
        return self._rival_among(self._bucket.names(self._root))

    def beat(self) -> bool:
        """Write the heartbeat; return False if the lease is lost."""
        tenure, started = self._tenure, self._clock()
        if tenure is None or not tenure.holds(started):
            return self._lose("its heartbeat could not be written in time")
        self._bucket.write(self._beat_path, self._heartbeat())
        if not self._shared:
            record = self._parse(f"{self._root}/{_newest(self._bucket.names(self._root)):05d}.json")
            if record is None or record.holder.token != self._holder.token:
                return self._lose(f"{record.holder} took it over" if record else "its record was removed")
        return tenure.beaten(started, self._clock()) or self._lose("its heartbeat could not be written in time")

    def holds(self) -> bool:
        """Return True while no other process can have taken the lease over."""
        return not self._lost and self._tenure is not None and self._tenure.holds(self._clock())

    def release(self) -> None:
        """Give the lease back, if it is still held."""
        if self._tenure is not None and self.holds():
            self._give_up()
        self._tenure = None

    def __enter__(self) -> "Lease":
        self._beating.start()
        self._watching.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ending.set()
        if self._lost:
            raise Conflict(f"{self.what} is not held by this process any more: {self._lost}; everything committed is kept") from error
        self._beating.join()
        self.release()

    def _keep_beating(self) -> None:
        while not self._ending.wait(BEAT_SECONDS):
            try:
                if not self.beat():
                    return
            except StorageError:
                continue  # the next heartbeat may succeed, and until then `_keep_watching` counts

    def _keep_watching(self) -> None:
        while not self._ending.is_set():
            if not self.holds():
                self._lose("its heartbeat could not be written in time")
                return self._on_lost()
            self._ending.wait(1.0)

    def _lose(self, why: str) -> bool:
        self._lost = self._lost or why
        return False

    def _give_up(self) -> None:
        if self._shared:
            self._bucket.remove(self._beat_path)
        else:
            self._bucket.write(self._beat_path, self._heartbeat(released=True))
            self._number = 0

    @property
    def _beat_path(self) -> str:
        return f"{self._root}/shared-{self._holder.token}.beat" if self._shared else f"{self._root}/{self._number:05d}.beat"

    def _heartbeat(self, released: bool = False) -> bytes:
        self._count += 1
        return Heartbeat(self._holder, self._count, released).to_bytes()

    def _rival_among(self, names: list[str]) -> Rival | None:
        beats = [] if self._shared else [f"{self._root}/{name}" for name in names if _SHARED.fullmatch(name)]
        newest = _newest(names)
        if newest and newest != self._number:
            stem = f"{newest:05d}"
            beats.append(f"{self._root}/{stem}.{'beat' if f'{stem}.beat' in names else 'json'}")
        found = [rival for path in beats if (rival := self._look(path))]
        return min(found, key=lambda rival: rival.life != "alive", default=None)

    def _look(self, path: str) -> Rival | None:
        try:
            data = self._bucket.read(path)
        except MissingObject:  # released in the meantime
            return Rival(None, "unknown") if path.endswith(".json") else None
        life = self._watch.see(path.rpartition(".")[0], data, self._clock())  # a number's first heartbeat replaces its record
        beat = Heartbeat.parse(data)
        return None if life == "dead" else Rival(beat.holder if beat else None, life)

    def _parse(self, path: str) -> Heartbeat | None:
        try:
            return Heartbeat.parse(self._bucket.read(path))
        except MissingObject:
            return None

    def _forget_older(self) -> None:
        """Remove what dead holders left. The newest number stays for good, so that no number is given twice."""
        if self._shared:
            return
        for name in self._bucket.names(self._root):
            stem = name.split(".")[0]
            if _SHARED.fullmatch(name) or (stem.isdigit() and int(stem) < self._number):
                self._bucket.remove(f"{self._root}/{name}")


def _newest(names: list[str]) -> int:
    """Return the highest number among a lease's objects; 0 without one."""
    return max((int(match[1]) for name in names if (match := _NUMBER.fullmatch(name))), default=0)
