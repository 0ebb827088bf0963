"""List what fine-tuning has to do: a job for each finished SAE and arm."""

from collections.abc import Sequence

from scopemill.deploy.plan.record import PlanRecord
from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.state import SweepState, objects_of
from scopemill.evaluator.fidelity.finetuned import Finetuned, FinetuneJob
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket


def finetune_jobs(bucket: Bucket, record: PlanRecord, state: SweepState) -> list[FinetuneJob]:
    """Return a job for each finished SAE of a sweep and each arm."""
    roots = {sae.name: sae.root for sae in record.saes}
    return [
        FinetuneJob(one.name, bucket.place(roots[one.sae]), bucket.url, one.root, one.arm, one.sparsity)
        for one in record.finetuned
        if state.saes[one.sae].finished
    ]


def unfinished_jobs(bucket: Bucket, jobs: Sequence[FinetuneJob]) -> list[FinetuneJob]:
    """Return the jobs whose fine-tuned SAE is not committed, by one listing."""
    objects = objects_of(bucket, [job.root for job in jobs])
    return [job for job in jobs if SaeLayout(job.root).config not in objects[job.root]]


def read_finetuned(bucket: Bucket, jobs: Sequence[FinetuneJob]) -> dict[str, Finetuned]:
    """Return the records of the committed jobs, by the job's name."""
    left = {job.root for job in unfinished_jobs(bucket, jobs)}
    done = [job for job in jobs if job.root not in left]
    records = side_by_side(lambda job: Finetuned.read(bucket, SaeLayout(job.root)), done)
    return {job.name: record for job, record in zip(done, records, strict=True)}
