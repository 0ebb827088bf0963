"""Read the evaluations of a sweep's checkpoints."""

from collections.abc import Sequence

from scopemill.deploy.plan.record import SaeRecord
from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.state import SaeState
from scopemill.evaluator.fidelity.jobs import Job, committed
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.storage.bucket import Bucket


def measured_jobs(sae: SaeRecord, state: SaeState) -> list[Job]:
    """Return a job for each checkpoint that has an evaluation, by ascending step."""
    return [Job(sae.name, sae.root, step) for step in sorted(state.measured)]


def read_evaluations(bucket: Bucket, jobs: Sequence[Job], settings: dict[str, object]) -> dict[Job, Evaluation]:
    """Read the evaluations that these jobs have.

    Damaged ones and those made with other settings are left out.
    """
    read = side_by_side(lambda job: committed(bucket, job, settings), jobs)
    return {job: evaluation for job, evaluation in zip(jobs, read, strict=True) if evaluation}
