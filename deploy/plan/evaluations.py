"""Evaluations of a sweep's checkpoints, read side by side: a large sweep has thousands."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from scopemill.deploy.plan.record import SaeRecord
from scopemill.deploy.plan.state import SaeState
from scopemill.evaluator.fidelity.jobs import Job
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket

READS_AT_ONCE = 16
T = TypeVar("T")
U = TypeVar("U")


def measured_jobs(sae: SaeRecord, state: SaeState) -> list[Job]:
    """Return a job for each checkpoint that has an evaluation, by ascending step."""
    return [Job(sae.name, sae.root, step) for step in sorted(state.measured)]


def read_evaluations(bucket: Bucket, jobs: Sequence[Job], settings: dict[str, object]) -> dict[Job, Evaluation]:
    """Read the evaluations that these jobs have; those made with other settings are left out."""
    read = side_by_side(lambda job: Evaluation.read(bucket, SaeLayout(job.root).checkpoint(job.step).metrics), jobs)
    return {job: evaluation for job, evaluation in zip(jobs, read, strict=True) if evaluation.settings == settings}


def side_by_side(read: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """Call a function that waits for the bucket for all items, some at a time; the results keep the items' order."""
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return list(pool.map(read, items))
