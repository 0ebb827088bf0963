"""Tell which SAEs were not trained, which checkpoints were not evaluated, and why."""

from collections import Counter
from collections.abc import Mapping

from rich.table import Table

from scopemill.deploy.orchestrator.schedule import SaeOutcome
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


def summary(outcomes: Mapping[str, SaeOutcome]) -> Table:
    """Return a table of the SAEs that failed or were stopped.

    Its title has the counts of all outcomes.
    """
    counts = Counter(outcome.state for outcome in outcomes.values())
    table = Table(title=", ".join(f"{n} {state}" for state, n in sorted(counts.items())), title_justify="left", box=None, pad_edge=False)
    for column in ("SAE", "outcome", "tries", "reason"):
        table.add_column(column, overflow="fold")
    for name, outcome in outcomes.items():
        if outcome.state != "finished":
            table.add_row(name, outcome.state, str(outcome.tries), outcome.reason)
    return table
