"""Read a bucket's sweeps and trainings again and again, at the price of what changed.

`scan` lists the bucket, which costs one listing of each folder and a read of each object that is new. `look` reads only what a sweep
at work changes: its progress, requests and lease. Both return an immutable snapshot, which request handlers read without waiting.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from scopemill.deploy.plan.progress import SweepProgress, read_progress
from scopemill.deploy.plan.record import PlanRecord, SaeRecord, read_plan_of
from scopemill.deploy.plan.requests import Request, read_requests
from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.state import SaeState
from scopemill.deploy.plan.stopped import read_stopped
from scopemill.deploy.plan.submission import read_submission
from scopemill.deploy.plan.withdrawn import Why, read_withdrawn
from scopemill.deploy.studio.cache import VersionedCache
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.errors import MissingObject, StorageError
from scopemill.proto.finished import is_finished
from scopemill.proto.layout import LeaseLayout, SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.heartbeat import Holder
from scopemill.proto.storage.lease import Lease
from scopemill.trainer.training.history import History, Row


@dataclass(frozen=True)
class SaeFacts:
    """Hold what the bucket says of one SAE, apart from the run at work."""

    state: SaeState = SaeState()
    last: Row | None = None  # of the history
    evaluation: Evaluation | None = None  # of the newest measured checkpoint
    halved: str | None = None  # why early stopping stopped it
    evidence: bool = False


@dataclass(frozen=True)
class SweepFacts:
    """Hold what the bucket says of one sweep."""

    name: str
    record: PlanRecord | None = None  # None: not planned yet, or by a version that this one cannot read
    config: dict[str, Any] | None = None  # the sweep file's content
    progress: SweepProgress | None = None
    driver: str | None = None  # who holds the sweep's lease
    requests: tuple[Request, ...] = ()
    withdrawn: dict[str, Why] = field(default_factory=dict)
    report: bool = False
    note: str | None = None  # what became of a driver that this service started, where the bucket does not tell it

    @property
    def runs(self) -> bool:
        """Return True if a driver is at work."""
        return self.driver is not None


@dataclass(frozen=True)
class Snapshot:
    """Hold a bucket at one moment."""

    read_at: float
    sweeps: dict[str, SweepFacts]
    saes: dict[str, SaeFacts]  # by folder; those of sweeps, and finished ones of others
    problem: str | None = None  # why the bucket could not be read since


class BucketReader:
    """Make snapshots of one bucket; one thread at a time calls it."""

    def __init__(self, bucket: Bucket, note: Callable[[str, bool], str | None] = lambda sweep, runs: None):
        self.bucket, self._note = bucket, note
        self.snapshot = Snapshot(0.0, {}, {})
        self._cache, self._me = VersionedCache(100_000), Holder.myself()
        self._leases: dict[str, Lease] = {}
        self._whole: set[str] = set()  # folders whose cfg.json was found whole

    def scan(self) -> Snapshot:
        """List the bucket and read what is new."""
        sweep_versions, sae_versions = self.bucket.versions("sweeps"), self.bucket.versions("saes")
        if self.snapshot.sweeps and not sweep_versions and not sae_versions:  # stores list what is not there as empty
            raise StorageError(f"{self.bucket.url} shows none of its objects any more: it is unmounted, or was moved or deleted")
        names = sorted({path.split("/")[1] for path in sweep_versions if path.count("/") >= 2})
        sweeps = {name: self._sweep(name, sweep_versions) for name in names}
        objects = _by_folder(sae_versions)
        planned = {sae.root for sweep in sweeps.values() if sweep.record for sae in sweep.record.saes}
        for root in planned:
            objects.setdefault(root, {})
        found = side_by_side(lambda item: self._sae(*item), list(objects.items()))
        saes = {root: facts for root, facts in zip(objects, found, strict=True) if root in planned or facts.state.finished}
        self.snapshot = Snapshot(time.time(), sweeps, saes)
        return self.snapshot

    def look(self) -> Snapshot:
        """Read what the sweeps at work have changed."""
        sweeps = {
            name: self._at_work(sweep) if sweep.runs or sweep.requests or sweep.note else sweep
            for name, sweep in self.snapshot.sweeps.items()
        }
        self.snapshot = replace(self.snapshot, read_at=time.time() if not self.snapshot.problem else self.snapshot.read_at, sweeps=sweeps)
        return self.snapshot

    def failed(self, reason: str) -> Snapshot:
        """Note that the bucket does not answer: what was read stays."""
        self.snapshot = replace(self.snapshot, problem=reason)
        return self.snapshot

    def _sweep(self, name: str, versions: dict[str, str]) -> SweepFacts:
        layout = SweepLayout(name)
        plan, given, file = (versions.get(path) for path in (layout.plan, layout.submission, layout.config))
        facts = SweepFacts(
            name=name,
            record=self._cache.get(("plan", name), plan, lambda: read_plan_of(self.bucket, name)) if plan else None,
            config=self._cache.get(("config", name), (given, file), lambda: self._config(layout)) if given or file else None,
            withdrawn=read_withdrawn(self.bucket, name) if layout.withdrawn in versions else {},
            report=layout.report in versions,
        )
        return self._at_work(facts)

    def _at_work(self, sweep: SweepFacts) -> SweepFacts:
        name = sweep.name
        lease = self._leases.setdefault(name, Lease(self.bucket, LeaseLayout.sweep(name), f"sweep {name}"))
        rival = lease.rival()
        if rival and rival.holder and (rival.holder.pid, rival.holder.machine) == (self._me.pid, self._me.machine):
            rival = None  # this service itself, which carries out a request
        return replace(
            sweep,
            progress=read_progress(self.bucket, name),
            requests=tuple(read_requests(self.bucket, name)),
            withdrawn=read_withdrawn(self.bucket, name),
            driver=str(rival) if rival else None,
            note=self._note(name, rival is not None),
        )

    def _config(self, layout: SweepLayout) -> dict[str, Any] | None:
        """Return the sweep file's content: as the newest run was given it, or of earlier versions as it was published."""
        if submission := read_submission(self.bucket, layout.root.removeprefix("sweeps/")):
            return submission.sweep
        try:
            data = yaml.safe_load(self.bucket.read(layout.config))
        except (MissingObject, yaml.YAMLError, UnicodeDecodeError):
            return None
        return data if isinstance(data, dict) else None

    def _sae(self, root: str, versions: dict[str, str]) -> SaeFacts:
        layout = SaeRecord(name="", root=root, steps=0, inputs=(), targets=()).layout
        state = SaeState.of(layout, versions.keys())
        if state.finished and root not in self._whole:
            if is_finished(self.bucket, layout):
                self._whole.add(root)
            else:
                state = replace(state, finished=False)
        history = versions.get(layout.history)
        last = self._cache.get(("last", root), history, lambda: self._last_row(layout.history, state)) if history else None
        return SaeFacts(
            state=state,
            last=last,
            evaluation=self._evaluation(layout.checkpoint(max(state.measured)).metrics, versions)
            if state.measured
            else self._evaluation(layout.metrics, versions),
            halved=self._halved(layout, versions) if state.stopped and not state.finished else None,
            evidence=any(path.startswith(f"{layout.evidence}/") and path.endswith("/evidence.json") for path in versions),
        )

    def _last_row(self, path: str, state: SaeState) -> Row | None:
        rows = History.load(self.bucket, path, state.step or 2**62).rows
        return rows[-1] if rows else None

    def _evaluation(self, path: str, versions: dict[str, str]) -> Evaluation | None:
        version = versions.get(path)

        def read() -> Evaluation | None:
            try:
                return Evaluation.find(self.bucket, path)
            except MissingObject:
                return None

        return self._cache.get(("evaluation", path), version, read) if version else None

    def _halved(self, layout: Any, versions: dict[str, str]) -> str | None:
        stopped = self._cache.get(("stopped", layout.root), versions.get(layout.stopped), lambda: read_stopped(self.bucket, layout))
        return stopped.reason if stopped else None


def _by_folder(versions: dict[str, str]) -> dict[str, dict[str, str]]:
    """Divide objects below ``saes`` by their SAE's folder, ``saes/<model>/<hook>/<width>/<architecture>/<id>``."""
    found: dict[str, dict[str, str]] = {}
    for path, version in versions.items():
        parts = path.split("/")
        if len(parts) > 6:
            found.setdefault("/".join(parts[:6]), {})[path] = version
    return found
