"""List what fine-tuning has to do: a job for each finished SAE and arm."""

from collections.abc import Sequence

from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.state import SweepState, objects_of
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.evaluator.fidelity.finetuned import Finetuned, FinetuneJob
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket


def finetune_jobs(plan: SweepPlan, state: SweepState) -> list[FinetuneJob]:
    """Return a job for each finished SAE of a sweep and each arm."""
    if not plan.config.train.finetune:
        return []
    kl, jobs = plan.config.train.finetune.kl, []
    for sae in plan.saes:
        if state.saes[sae.name].finished:
            source = {"sae": sae.layout.root, "dataset": plan.config.dataset}
            for arm in kl.arms:
                root = f"{sae.layout.root}-{kl.id(arm, source)}"
                place = plan.bucket.place(sae.layout.root)
                jobs.append(FinetuneJob(f"{sae.name}-{arm}", place, plan.bucket.url, root, arm, sae.config.sparsity))
    return jobs


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
