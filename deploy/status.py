"""What of a sweep is committed, read from the bucket alone: works from anywhere, running or not."""

from dataclasses import dataclass

from rich.table import Table

from scopemill.deploy.plan import SweepPlan
from scopemill.evaluator.actor import Job, committed
from scopemill.evaluator.results import Evaluation
from scopemill.proto.dataset import committed_shards
from scopemill.trainer import checkpoint


@dataclass(frozen=True)
class SaeStatus:
    name: str
    step: int  # of the newest checkpoint
    steps: int
    finished: bool
    evaluations: list[Evaluation]  # of this sweep's settings, by step


@dataclass(frozen=True)
class SweepStatus:
    shards: int
    shards_wanted: int
    saes: list[SaeStatus]


def read_status(plan: SweepPlan) -> SweepStatus:
    manifest = plan.manifest
    wanted = manifest.shards if manifest else plan.config.harvest.tokens // plan.config.harvest.rows_per_shard
    done = len(committed_shards(plan.bucket, plan.config.dataset)) if manifest else 0
    saes = []
    for sae in plan.saes:
        steps = checkpoint.steps_of(plan.bucket, sae.layout)
        jobs = [Job(sae.name, sae.layout.root, step) for step in steps]
        evaluations = [e for job in jobs if (e := committed(plan.bucket, job, plan.evaluation_settings))]
        finished = plan.bucket.exists(sae.layout.config)
        saes.append(SaeStatus(sae.name, max(steps, default=0), sae.config.steps, finished, evaluations))
    return SweepStatus(done, wanted, saes)


def status_table(status: SweepStatus) -> Table:
    table = Table(title=f"shards {status.shards} of {status.shards_wanted}", title_justify="left", box=None, pad_edge=False)
    for column in ("SAE", "steps", "state", "L0", "FVU", "delta loss", "recovered (zero)", "dead"):
        table.add_column(column, justify="left" if column in ("SAE", "state") else "right")
    for sae in status.saes:
        state = "finished" if sae.finished else "begun" if sae.step else "not begun"
        numbers = ["", "", "", "", ""]
        if sae.evaluations:
            r = sae.evaluations[-1].result
            numbers = [f"{r.l0:.1f}", f"{r.fvu:.3f}", f"{r.delta_loss:.3f}", f"{r.recovered_zero:.3f}", f"{r.dead_fraction:.1%}"]
        table.add_row(sae.name, f"{sae.step:,} / {sae.steps:,}", state, *numbers)
    return table
