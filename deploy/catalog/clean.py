"""What broken runs of a sweep left in the bucket, and nobody will ever read: found by what is committed, not by age."""

import re

from scopemill.deploy.plan.sweep_plan import Pass, SweepPlan
from scopemill.proto.layout import SaeLayout, SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training import checkpoint

_SHARD = re.compile(r"/shards/(\d{5,})\.zarr/")


def clean(plan: SweepPlan, dry_run: bool) -> list[str]:
    """Remove the orphans of a sweep that is not running now; returns their paths. Of one that runs, it would take work away."""
    found = orphans(plan)
    if not dry_run:
        for path in found:
            plan.bucket.remove(path)
    return found


def orphans(plan: SweepPlan) -> list[str]:
    """Temporary files of writers that died, shards without a commit, checkpoints without a record, optimisers that no one resumes."""
    bucket = plan.bucket
    datasets = [part.harvest.layout for part in plan.passes]
    roots = {plan.text.root, *(layout.root for layout in datasets), SweepLayout(plan.config.name).root}
    roots |= {sae.layout.root for sae in plan.saes}
    found = {path for root in roots for path in bucket.find(root, temporary=True)}
    for part in plan.passes:
        found |= _uncommitted_shards(part)
    for sae in plan.saes:
        found |= _stale_checkpoints(bucket, sae.layout)
    return sorted(found)


def _uncommitted_shards(part: Pass) -> set[str]:
    found = part.bucket.find(part.harvest.layout.shards)
    objects = {path: int(match[1]) for path in found if (match := _SHARD.search(path))}
    done = part.committed  # read after the objects: what is committed meanwhile is kept
    return {path for path, shard in objects.items() if shard not in done}


def _stale_checkpoints(bucket: Bucket, layout: SaeLayout) -> set[str]:
    begun = set(bucket.find(layout.checkpoints))
    steps = checkpoint.steps_of(bucket, layout)
    whole = tuple(f"{layout.checkpoint(step).root}/" for step in steps)
    unfinished = {path for path in begun if not path.startswith(whole)}
    return unfinished | (begun & {layout.checkpoint(step).optimizer for step in steps[:-1]})
