"""Tell which checkpoints could not be evaluated, and why."""

from collections.abc import Mapping

from rich.table import Table

from scopemill.evaluator.fidelity.jobs import Job
from scopemill.proto.errors import PartlyFailed, ScopemillError


def failed_checkpoints(failures: Mapping[Job, ScopemillError]) -> Table:
    """Return a table of the checkpoints that could not be evaluated."""
    table = Table(title=f"{len(failures)} checkpoints not evaluated", title_justify="left", box=None, pad_edge=False)
    for column in ("SAE", "step", "reason"):
        table.add_column(column, overflow="fold", justify="right" if column == "step" else "left")
    for job, error in failures.items():
        table.add_row(job.sae, f"{job.step:,}", str(error))
    return table


def not_evaluated(failures: Mapping[Job, ScopemillError], total: int) -> PartlyFailed:
    """Return the error that names each SAE whose checkpoints could not be evaluated."""
    reasons = {job.sae: str(error) for job, error in failures.items()}
    listed = "\n".join(f"  {sae}: {reason}" for sae, reason in reasons.items())
    return PartlyFailed(f"{len(failures)} of {total} checkpoints could not be evaluated; the others are evaluated:\n{listed}")
