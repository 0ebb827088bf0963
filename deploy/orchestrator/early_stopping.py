"""Early stopping of a sweep's SAEs: what halving is told, and the records that it leaves in the bucket."""

from collections.abc import Mapping
from dataclasses import asdict

from scopemill.deploy.orchestrator.halving import Halving, Point, Verdict
from scopemill.deploy.plan.stopped import Stopped, read_stopped
from scopemill.deploy.plan.sweep_plan import Pass, PlannedSae
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.checksums import checksummed_record, read_record
from scopemill.trainer.training.history import History, Row


class EarlyStopping:
    """Halving as the sweep file asks for it; of a sweep without it, nothing ever stops."""

    def __init__(self, plan: Pass, todo: list[PlannedSae]):
        train = plan.config.train
        self._bucket, self._saes = plan.bucket, {sae.name: sae for sae in plan.saes}
        self._record = SweepLayout(plan.config.name).halving
        decided = train.halving and plan.bucket.exists(self._record)
        self._verdicts = read_record(plan.bucket, self._record)["verdicts"] if decided else []
        rivals: dict[str, list[str]] = {}
        for sae in plan.saes if train.halving else ():
            rivals.setdefault(sae.rivals, []).append(sae.name)
        self.steps = train.halving.steps(train.steps, train.log_every) if train.halving else ()
        keep = train.halving.keep if train.halving else 1.0
        self._halving = Halving(rivals, self.steps, keep, [(verdict["rivals"], verdict["step"]) for verdict in self._verdicts])
        if train.halving:
            self._know_who_trains_no_more(todo)

    def know(self, name: str, rows: Mapping[int, Row]) -> None:
        """Rows of an SAE's history at rungs."""
        for step, row in rows.items():
            self._halving.know(name, step, Point(row.l0, row.fvu))

    def know_history(self, name: str) -> list[int]:
        """The same from what is committed of its history; returns the rungs that it has rows at."""
        sae = self._saes[name]
        rows = {row.step: row for row in History.load(self._bucket, sae.layout.history, sae.config.steps).rows if row.step in self.steps}
        self.know(name, rows)
        return sorted(rows)

    def failed(self, name: str) -> None:
        """It will not be tried again: rivals wait for it no longer."""
        if self.steps:
            self._halving.gone(name, max(self.know_history(name), default=0))

    def decide(self) -> dict[str, str]:
        """Who stops now, and why. The records are there before anybody is told, so that a broken sweep goes on the same."""
        told = {}
        for verdict in self._halving.verdicts():
            for name, by in verdict.stopped.items():
                stopped = Stopped(verdict.step, *verdict.points[name], list(by))
                self._bucket.write(self._saes[name].layout.stopped, checksummed_record(asdict(stopped)))
                told[name] = stopped.why
            self._keep(verdict)
        return told

    def _know_who_trains_no_more(self, todo: list[PlannedSae]) -> None:
        for name in self._saes.keys() - {sae.name for sae in todo}:
            self.know_history(name)
            if stopped := read_stopped(self._bucket, self._saes[name].layout):
                self._halving.gone(name, stopped.step)

    def _keep(self, verdict: Verdict) -> None:
        """That a rung is decided is kept too: who goes on because somebody deleted ``stopped.json`` is not stopped there again."""
        self._verdicts.append(asdict(verdict))
        self._bucket.write(self._record, checksummed_record({"verdicts": self._verdicts}))
