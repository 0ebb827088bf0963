"""Remove a sweep's orphans: objects that broken runs left and no reader needs.

What is committed tells which objects are orphans.
"""

import re

from scopemill.deploy.plan.record import PlanRecord
from scopemill.deploy.plan.state import SweepState, objects_of
from scopemill.proto.layout import RESUMABLE, DatasetLayout, EvidenceLayout, SaeLayout
from scopemill.proto.storage.bucket import Bucket

_SHARD = re.compile(r"/shards/(\d{5,})\.zarr/")


def clean(bucket: Bucket, plan: PlanRecord, dry_run: bool) -> list[str]:
    """Remove a sweep's orphans and return their paths.

    While the sweep runs this would delete its uncommitted work.
    """
    found = orphans(bucket, plan)
    if not dry_run:
        for path in found:
            bucket.remove(path)
    return found


def orphans(bucket: Bucket, plan: PlanRecord) -> list[str]:
    """List a sweep's objects that no reader needs.

    These are temporary files, shards without a commit, checkpoints without a record, optimiser states that no run resumes, and of
    evidence what no commit names.
    """
    roots = [sae.root for sae in plan.saes]
    found = {path for paths in objects_of(bucket, roots, temporary=True).values() for path in paths}
    for root in {DatasetLayout(plan.text).root, *(part.layout.root for part in plan.passes), plan.layout.root}:
        found |= set(bucket.find(root, temporary=True))
    shards = [bucket.find(part.layout.shards) for part in plan.passes]
    saes = objects_of(bucket, roots)
    state = SweepState.read(bucket, plan)  # after the objects: what is committed meanwhile is kept
    for objects, part in zip(shards, state.passes, strict=True):
        found |= _uncommitted_shards(objects, part.committed)
    for sae in plan.saes:
        found |= _stale_checkpoints(saes[sae.root], sae.layout, state.saes[sae.name].checkpoints)
        found |= _stale_evidence(saes[sae.root], sae.layout)
    return sorted(found)


def _uncommitted_shards(objects: list[str], committed: frozenset[int]) -> set[str]:
    return {path for path in objects if (match := _SHARD.search(path)) and int(match[1]) not in committed}


def _stale_checkpoints(objects: list[str], layout: SaeLayout, steps: tuple[int, ...]) -> set[str]:
    of_checkpoints = {path for path in objects if path.startswith(f"{layout.checkpoints}/")}
    whole = tuple(f"{layout.checkpoint(step).root}/" for step in steps)
    unfinished = {path for path in of_checkpoints if not path.startswith(whole)}
    return unfinished | (of_checkpoints & {layout.checkpoint(step).optimizer for step in steps[:-RESUMABLE]})


def _stale_evidence(objects: list[str], layout: SaeLayout) -> set[str]:
    """Return the work of committed evidence; of evidence under way all but committed parts, with which a run goes on, and labels."""
    of_settings: dict[str, set[str]] = {}
    for path in objects:
        if path.startswith(f"{layout.evidence}/"):
            of_settings.setdefault(path.removeprefix(f"{layout.evidence}/").split("/")[0], set()).add(path)
    stale: set[str] = set()
    for settings, paths in of_settings.items():
        own = EvidenceLayout(layout.root, settings)
        if own.record in paths:
            stale |= {path for path in paths if path.startswith(f"{own.work}/")}
        else:
            parts = {path for path in paths if path.startswith(f"{own.parts}/")}
            names = [path.removeprefix(f"{own.parts}/").removesuffix(".json") for path in parts]
            kept = tuple(own.sample(name).removesuffix("sample.safetensors") for name in names)
            stale |= {path for path in paths - parts if not path.startswith((f"{own.labels}/", *kept))}
    return stale
