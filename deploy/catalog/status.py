"""Read what of a sweep is committed, from the bucket alone.

This works from anywhere, whether the sweep runs or not.
"""

import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from scopemill.deploy.plan.evaluations import measured_jobs, read_evaluations
from scopemill.deploy.plan.record import PassRecord, PlanRecord, SaeRecord
from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.state import PassState, SaeState, SweepState
from scopemill.deploy.plan.stopped import read_stopped
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training.history import History, Row

WATCH_SECONDS = 10.0


@dataclass(frozen=True)
class SaeStatus:
    """Describe one SAE: how far its training is, and its evaluations."""

    name: str
    path: str  # its folder in the bucket
    step: int  # of the newest checkpoint
    steps: int
    finished: bool
    last: Row | None  # of the history, as of the newest checkpoint
    evaluations: list[Evaluation]  # of this sweep's settings, by step
    stopped: str | None = None  # the reason, if rivals dominate it or people stopped it

    @property
    def ended(self) -> bool:
        """Return True if the SAE is not trained any more."""
        return self.finished or self.stopped is not None

    @property
    def seconds_left(self) -> float | None:
        """Return the seconds of training left at the newest checkpoint's speed.

        Returns None before the first checkpoint.
        """
        if self.ended:
            return 0.0
        return (self.steps - self.step) / self.last.steps_per_second if self.last and self.last.steps_per_second else None

    def to_json(self) -> dict[str, Any]:
        """Return the status as ``scopemill status --json`` gives it."""
        quality = asdict(self.evaluations[-1].result) if self.evaluations else None
        loss = self.last.loss if self.last else None
        kept = {name: getattr(self, name) for name in ("name", "path", "step", "steps", "finished", "stopped", "seconds_left")}
        return kept | {"loss": loss, "evaluations": len(self.evaluations), "newest_evaluation": quality}


@dataclass(frozen=True)
class PassStatus:
    """Describe one harvest: its shards in the bucket, and the number wanted."""

    dataset: str
    shards: int
    shards_wanted: int
    spent: bool = False  # its SAEs are finished, and its shards were deleted


@dataclass(frozen=True)
class SweepStatus:
    """Describe a sweep: its passes and its SAEs."""

    name: str
    passes: list[PassStatus]
    saes: list[SaeStatus]

    @property
    def shards(self) -> int:
        """Count the committed shards of all passes."""
        return sum(part.shards for part in self.passes)

    @property
    def shards_wanted(self) -> int:
        """Count the shards that all passes are to have."""
        return sum(part.shards_wanted for part in self.passes)

    @property
    def finished(self) -> bool:
        """Return True if every SAE is finished or stopped."""
        return all(sae.ended for sae in self.saes)

    def to_json(self) -> dict[str, Any]:
        """Return the status as ``scopemill status --json`` gives it."""
        own = {name: getattr(self, name) for name in ("name", "shards", "shards_wanted", "finished")}
        return own | {"passes": [asdict(part) for part in self.passes], "saes": [sae.to_json() for sae in self.saes]}


def read_status(bucket: Bucket, plan: PlanRecord, state: SweepState | None = None) -> SweepStatus:
    """Read a sweep's status; of the given state, else of the bucket's present one."""
    now = state or SweepState.read(bucket, plan)
    jobs = [job for sae in plan.saes for job in measured_jobs(sae, now.saes[sae.name])]
    evaluations: dict[str, list[Evaluation]] = {sae.name: [] for sae in plan.saes}
    for job, evaluation in read_evaluations(bucket, jobs, plan.evaluation_settings).items():
        evaluations[job.sae].append(evaluation)
    saes = side_by_side(lambda sae: _sae(bucket, sae, now.saes[sae.name], evaluations[sae.name]), plan.saes)
    return SweepStatus(plan.name, [_pass(part, of, plan.sheds) for part, of in zip(plan.passes, now.passes, strict=True)], saes)


def _sae(bucket: Bucket, sae: SaeRecord, state: SaeState, evaluations: list[Evaluation]) -> SaeStatus:
    rows = History.load(bucket, sae.layout.history, state.step).rows if state.history else []
    stopped = read_stopped(bucket, sae.layout) if state.stopped and not state.finished else None
    return SaeStatus(
        name=sae.name,
        path=sae.root,
        step=state.step,
        steps=sae.steps,
        finished=state.finished,
        last=rows[-1] if rows else None,
        evaluations=evaluations,
        stopped=stopped.reason if stopped else f"{state.withdrawn} on request" if state.withdrawn and not state.finished else None,
    )


def _pass(part: PassRecord, state: PassState, sheds: bool) -> PassStatus:
    wanted = state.manifest.shards if state.manifest else part.shards
    return PassStatus(part.dataset, len(state.committed), wanted, sheds and not state.unfinished)


def watch(bucket: Bucket, plan: PlanRecord, console: Console) -> None:
    """Show the status, and refresh it until every SAE is finished or stopped."""
    status = read_status(bucket, plan)
    with Live(status_table(status), console=console, auto_refresh=False) as live:
        while not status.finished:
            time.sleep(WATCH_SECONDS)
            status = read_status(bucket, plan)
            live.update(status_table(status), refresh=True)


def status_table(status: SweepStatus) -> Table:
    """Lay a status out as a table, a row for each SAE."""
    table = Table(title="\n".join(map(_shards, status.passes)), title_justify="left", box=None, pad_edge=False)
    for column in ("SAE", "steps", "state", "left", "loss", "L0", "FVU", "delta loss", "recovered (zero)", "dead"):
        table.add_column(column, justify="left" if column in ("SAE", "state") else "right")
    for sae in status.saes:
        state = "finished" if sae.finished else "stopped" if sae.stopped else "started" if sae.step else "not started"
        left = "" if sae.ended or sae.seconds_left is None else str(timedelta(seconds=round(sae.seconds_left)))
        loss = f"{sae.last.loss:.4g}" if sae.last else ""
        numbers = ["", "", "", "", ""]
        if sae.evaluations:
            r = sae.evaluations[-1].result
            numbers = [f"{r.l0:.1f}", f"{r.fvu:.3f}", f"{r.delta_loss:.3f}", f"{r.recovered_zero:.3f}", f"{r.dead_fraction:.1%}"]
        table.add_row(sae.name, f"{sae.step:,} / {sae.steps:,}", state, left, loss, *numbers)
    return table


def _shards(part: PassStatus) -> str:
    return f"{part.dataset}: " + ("trained, its shards are deleted" if part.spent else f"shards {part.shards} of {part.shards_wanted}")
