"""Watch the bucket while somebody looks, and tell open pages what has changed."""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

from scopemill.deploy.studio.bucket_reader import BucketReader, SweepFacts
from scopemill.deploy.studio.dispatcher import Dispatcher
from scopemill.deploy.studio.hub import Hub
from scopemill.deploy.studio.models.trainings import Training
from scopemill.deploy.studio.trainings import Trainings
from scopemill.proto.errors import StorageError

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.75  # between looks at sweeps at work
SCAN_SECONDS = 5.0  # between listings of the bucket, while a page is open or requests come
IDLE_SECONDS = 60.0  # between listings, while nobody looks
RECENT_SECONDS = 30.0  # after a request, somebody looks
STALE_SECONDS = 10.0  # a request waits for a newer snapshot than this
ENDINGS = ("completed", "failed", "stopped")
News = tuple[str, str, Any]  # channel, event and data


class Watcher:
    """Keep the newest trainings of a bucket."""

    def __init__(self, reader: BucketReader, hub: Hub, dispatcher: Dispatcher | None):
        self._reader, self._hub, self._dispatcher = reader, hub, dispatcher
        self.trainings = Trainings(reader.snapshot)
        self._wake, self._changed = asyncio.Event(), asyncio.Condition()
        self._asked = self._scanned = 0.0
        self._begun = self._ended = 0  # updates
        self._due = True  # to list the bucket, whatever the time
        self._settling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self.update()
            updated = time.monotonic()
            while not self._wake.is_set():
                at_work = any(sweep.runs or sweep.requests or sweep.note for sweep in self.trainings.snapshot.sweeps.values())
                try:
                    await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS if at_work and self._watched else SCAN_SECONDS)
                except TimeoutError:
                    if self._watched or time.monotonic() - updated >= IDLE_SECONDS:
                        break

    @property
    def _watched(self) -> bool:
        """Return True while somebody looks."""
        return self._hub.watched or time.monotonic() - self._asked < RECENT_SECONDS

    async def fresh(self) -> Trainings:
        """Return trainings that are not stale.

        Of a bucket that does not answer, these are the newest there are.
        """
        self._asked = time.monotonic()
        if time.time() - self.trainings.snapshot.read_at > STALE_SECONDS and self.trainings.snapshot.problem is None:
            await self.again()
        return self.trainings

    async def again(self) -> Trainings:
        """List the bucket now, and return what it holds."""
        wanted = self._begun + 1  # the update that is at work may have read what has changed since
        self._due = True
        self._wake.set()
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended >= wanted)
        return self.trainings

    async def update(self) -> None:
        """Look once, tell the news, and have requests carried out that no driver carries out."""
        self._begun += 1
        self._wake.clear()
        started = time.monotonic()
        scans = self._due or started - self._scanned >= SCAN_SECONDS
        self._due = False
        before = self.trainings
        self.trainings, news = await asyncio.to_thread(self._read, scans)
        self._scanned = started if scans else self._scanned
        self._due = self._due or (not scans and any(event in ENDINGS for _, event, _ in news))  # what was just written is not listed yet
        for channel, event, data in news if before.snapshot.read_at else []:
            self._hub.send(channel, event, data)
        async with self._changed:
            self._ended = self._begun
            self._changed.notify_all()
        if self._dispatcher and (self._settling is None or self._settling.done()):
            self._settling = asyncio.create_task(self._settle(self._dispatcher))

    async def _settle(self, dispatcher: Dispatcher) -> None:
        if await dispatcher.settle(self.trainings.snapshot.sweeps.values()):
            self._due = True
            self._wake.set()

    def _read(self, scans: bool) -> tuple[Trainings, list[News]]:
        before = self.trainings
        try:
            now = Trainings(self._reader.scan() if scans else self._reader.look())
            return now, list(news_of(before, now))
        except StorageError as error:
            now = Trainings(self._reader.failed(str(error)))
            return now, list(news_of(before, now))
        except Exception as error:  # a damaged object must not end the watch
            log.exception("the bucket was not read to its end")
            return Trainings(self._reader.failed(f"{type(error).__name__}: {error}")), []


def news_of(before: Trainings, now: Trainings) -> Iterator[News]:
    """Yield what has changed between two snapshots, as messages."""
    if before.snapshot.problem != now.snapshot.problem:
        event = "unreachable" if now.snapshot.problem else "reachable"
        yield "bucket", event, {"problem": now.snapshot.problem, "read_at": now.snapshot.read_at}
    if before.by_id.keys() != now.by_id.keys():
        added, removed = now.by_id.keys() - before.by_id.keys(), before.by_id.keys() - now.by_id.keys()
        yield "trainings", "changed", {"added": sorted(added), "removed": sorted(removed)}
    for id, entry in now.by_id.items():
        if known := before.by_id.get(id):
            yield from _news_of_training(known.training, entry.training, known.facts.state.step, entry.facts.state.step)
    for name, sweep in now.snapshot.sweeps.items():
        if (old := before.snapshot.sweeps.get(name)) and _shown(old) != _shown(sweep):
            yield f"sweep/{name}", "progress", _shown(sweep)


def _news_of_training(old: Training, new: Training, saved_before: int, saved: int) -> Iterator[News]:
    channel = f"training/{new.id}"
    if saved > saved_before:
        yield channel, "checkpoint", {"step": saved}
    if new.progress != old.progress:
        yield channel, "progress", new.progress.model_dump() | {"state": new.state}
    if (new.state, new.reason, new.asked, new.quality, new.evidence) != (old.state, old.reason, old.asked, old.quality, old.evidence):
        yield channel, new.state if new.state != old.state else "changed", new.model_dump()


def _shown(sweep: SweepFacts) -> dict[str, Any]:
    progress = sweep.progress
    return {
        "driver": sweep.driver,
        "note": sweep.note,
        "phase": progress.phase if progress and sweep.runs else None,
        "phase_pct": round(100.0 * progress.done / progress.total, 1) if progress and sweep.runs and progress.total else None,
        "says": progress.says if progress else [],
        "error": progress.error if progress else None,
    }
