"""What of a sweep is committed, read from the bucket alone: works from anywhere, running or not."""

import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from scopemill.deploy.plan.stopped import read_stopped
from scopemill.deploy.plan.sweep_plan import Pass, SweepPlan
from scopemill.evaluator.fidelity.jobs import Job, committed
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History, Row

WATCH_SECONDS = 10.0


@dataclass(frozen=True)
class SaeStatus:
    name: str
    path: str  # its folder in the bucket
    step: int  # of the newest checkpoint
    steps: int
    finished: bool
    last: Row | None  # of the history, as of the newest checkpoint
    evaluations: list[Evaluation]  # of this sweep's settings, by step
    stopped: str | None = None  # why it does not go on, if rivals outdid it

    @property
    def ended(self) -> bool:
        return self.finished or self.stopped is not None

    @property
    def seconds_left(self) -> float | None:
        """At the speed of the newest checkpoint, as if it were being trained now; None before there is one."""
        if self.ended:
            return 0.0
        return (self.steps - self.step) / self.last.steps_per_second if self.last and self.last.steps_per_second else None

    def to_json(self) -> dict[str, Any]:
        quality = asdict(self.evaluations[-1].result) if self.evaluations else None
        loss = self.last.loss if self.last else None
        kept = {name: getattr(self, name) for name in ("name", "path", "step", "steps", "finished", "stopped", "seconds_left")}
        return kept | {"loss": loss, "evaluations": len(self.evaluations), "newest_evaluation": quality}


@dataclass(frozen=True)
class PassStatus:
    """One harvest: its shards in the bucket, and how many there are to be."""

    dataset: str
    shards: int
    shards_wanted: int
    spent: bool = False  # its SAEs are finished, and its shards were deleted


@dataclass(frozen=True)
class SweepStatus:
    name: str
    passes: list[PassStatus]
    saes: list[SaeStatus]

    @property
    def shards(self) -> int:
        return sum(part.shards for part in self.passes)

    @property
    def shards_wanted(self) -> int:
        return sum(part.shards_wanted for part in self.passes)

    @property
    def finished(self) -> bool:
        return all(sae.ended for sae in self.saes)

    def to_json(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("name", "shards", "shards_wanted", "finished")}
        return own | {"passes": [asdict(part) for part in self.passes], "saes": [sae.to_json() for sae in self.saes]}


def read_status(plan: SweepPlan) -> SweepStatus:
    saes = []
    for sae in plan.saes:
        steps = checkpoint.steps_of(plan.bucket, sae.layout)
        step = max(steps, default=0)
        jobs = [Job(sae.name, sae.layout.root, step) for step in steps]
        evaluations = [e for job in jobs if (e := committed(plan.bucket, job, plan.evaluation_settings))]
        rows = History.load(plan.bucket, sae.layout.history, step).rows
        finished = plan.bucket.exists(sae.layout.config)
        last = rows[-1] if rows else None
        stopped = None if finished else read_stopped(plan.bucket, sae.layout)
        why = stopped.why if stopped else None
        saes.append(SaeStatus(sae.name, sae.layout.root, step, sae.config.steps, finished, last, evaluations, why))
    return SweepStatus(plan.config.name, [_pass(part, plan.sheds) for part in plan.passes], saes)


def _pass(part: Pass, sheds: bool) -> PassStatus:
    manifest, config = part.manifest, part.config.harvest
    wanted = manifest.shards if manifest else config.tokens // config.rows_per_shard
    return PassStatus(part.harvest.dataset, len(part.committed), wanted, sheds and not part.unfinished)


def watch(plan: SweepPlan, console: Console) -> None:
    """Show the status, and show it anew until every SAE is finished or stopped."""
    status = read_status(plan)
    with Live(status_table(status), console=console, auto_refresh=False) as live:
        while not status.finished:
            time.sleep(WATCH_SECONDS)
            status = read_status(plan)
            live.update(status_table(status), refresh=True)


def status_table(status: SweepStatus) -> Table:
    table = Table(title="\n".join(map(_shards, status.passes)), title_justify="left", box=None, pad_edge=False)
    for column in ("SAE", "steps", "state", "left", "loss", "L0", "FVU", "delta loss", "recovered (zero)", "dead"):
        table.add_column(column, justify="left" if column in ("SAE", "state") else "right")
    for sae in status.saes:
        state = "finished" if sae.finished else "stopped" if sae.stopped else "begun" if sae.step else "not begun"
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
