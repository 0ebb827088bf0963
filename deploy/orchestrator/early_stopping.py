"""Stop a sweep's SAEs early.

Histories are fed to halving, and its decisions are kept in the bucket.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from scopemill.deploy.orchestrator.halving import Halving, Point, Verdict
from scopemill.deploy.plan.state import PassState
from scopemill.deploy.plan.stopped import Stopped, read_stopped
from scopemill.deploy.plan.sweep_plan import Pass, PlannedSae
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.checksums import checksummed_record, read_record
from scopemill.trainer.training.history import History, Row


class EarlyStopping:
    """Halve a sweep's SAEs as its file asks; without ``train.halving`` no SAE stops."""

    def __init__(self, plan: Pass, state: PassState, todo: list[PlannedSae]):
        train = plan.config.train
        self._bucket, self._saes, self._state = plan.bucket, {sae.name: sae for sae in plan.saes}, state
        self._record = SweepLayout(plan.config.name).halving
        decided = train.halving and plan.bucket.exists(self._record)
        self._verdicts: list[dict[str, Any]] = read_record(plan.bucket, self._record)["verdicts"] if decided else []
        rivals: dict[str, list[str]] = {}
        for sae in plan.saes if train.halving else ():
            rivals.setdefault(sae.rivals, []).append(sae.name)
        self.steps = train.halving.steps(train.steps, train.log_every) if train.halving else ()
        keep = train.halving.keep if train.halving else 1.0
        self._halving = Halving(rivals, self.steps, keep, [(verdict["rivals"], verdict["step"]) for verdict in self._verdicts])
        if train.halving:
            self._know_ended(todo)

    def know(self, name: str, rows: Mapping[int, Row]) -> None:
        """Take in rows of an SAE's history at rungs."""
        for step, row in rows.items():
            self._halving.know(name, step, Point(row.l0, row.fvu))

    def know_history(self, name: str) -> list[int]:
        """Take in what is committed of an SAE's history.

        Returns the rungs that it has rows at.
        """
        sae = self._saes[name]
        rows = {row.step: row for row in History.load(self._bucket, sae.layout.history, sae.config.steps).rows if row.step in self.steps}
        self.know(name, rows)
        return sorted(rows)

    def failed(self, name: str) -> None:
        """Take an SAE that is not retried out of the rungs that follow.

        Its rivals no longer wait for it.
        """
        if self.steps:
            self._halving.gone(name, max(self.know_history(name), default=0))

    def decide(self) -> dict[str, str]:
        """Return the SAEs to stop now, each with its reason.

        The records are written before any trainer is asked to stop, so a sweep that is broken off here decides the same again.
        """
        reasons = {}
        for verdict in self._halving.verdicts():
            for name, by in verdict.stopped.items():
                stopped = Stopped(verdict.step, *verdict.points[name], list(by))
                self._bucket.write(self._saes[name].layout.stopped, checksummed_record(asdict(stopped)))
                reasons[name] = stopped.reason
            self._keep(verdict)
        return reasons

    def _know_ended(self, todo: list[PlannedSae]) -> None:
        """Take in the SAEs that are not trained any more. A rung that was decided before needs no history again."""
        stopped_at = {name: verdict["step"] for verdict in self._verdicts for name in verdict["stopped"]}
        decided = {(verdict["rivals"], verdict["step"]) for verdict in self._verdicts}
        for name in self._saes.keys() - {sae.name for sae in todo}:
            sae, state = self._saes[name], self._state.saes[name]
            end = self.steps[-1]
            if state.stopped and (step := stopped_at.get(name) or self._stopped_at(sae)) is not None:
                end = step
                self._halving.gone(name, step)
            if state.withdrawn and not state.finished:
                self.failed(name)
            elif state.history and any(step <= end and (sae.rivals, step) not in decided for step in self.steps):
                self.know_history(name)

    def _stopped_at(self, sae: PlannedSae) -> int | None:
        stopped = read_stopped(self._bucket, sae.layout)
        return stopped.step if stopped else None

    def _keep(self, verdict: Verdict) -> None:
        """Record that a rung is decided: an SAE that resumes because its ``stopped.json`` was deleted is not stopped there again."""
        self._verdicts.append(asdict(verdict))
        self._bucket.write(self._record, checksummed_record({"verdicts": self._verdicts}))
