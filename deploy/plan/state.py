"""Hold a sweep's state: one snapshot of its bucket.

The snapshot takes few requests however many SAEs there are.
"""

import posixpath
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial

from scopemill.deploy.plan.record import PassRecord, PlanRecord
from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.withdrawn import read_withdrawn
from scopemill.proto.dataset import DatasetManifest, committed_shards, read_manifest
from scopemill.proto.errors import MissingObject
from scopemill.proto.finished import is_finished
from scopemill.proto.layout import CheckpointLayout, SaeLayout
from scopemill.proto.storage.bucket import Bucket

_STEP = re.compile(r"/checkpoints/(\d+)/")


@dataclass(frozen=True)
class SaeState:
    """Hold what the bucket has of one SAE."""

    finished: bool = False
    stopped: bool = False  # early, because rivals dominate it
    withdrawn: str | None = None  # "stopped" or "deleted", on request
    history: bool = False
    checkpoints: tuple[int, ...] = ()  # steps, ascending
    measured: frozenset[int] = frozenset()  # those of the checkpoints that have an evaluation, with whatever settings

    @property
    def step(self) -> int:
        """Return the step of the newest checkpoint, where training resumes; 0 without one."""
        return max(self.checkpoints, default=0)

    @staticmethod
    def of(layout: SaeLayout, objects: Collection[str]) -> "SaeState":
        """Tell the state from the paths of an SAE's objects."""
        numbers = {int(match[1]) for path in objects if (match := _STEP.search(path))}
        places: dict[int, CheckpointLayout] = {step: layout.checkpoint(step) for step in sorted(numbers)}
        steps = [step for step, place in places.items() if place.record in objects]
        return SaeState(
            finished=layout.config in objects and layout.weights in objects,
            stopped=layout.stopped in objects,
            history=layout.history in objects,
            checkpoints=tuple(steps),
            measured=frozenset(step for step in steps if places[step].metrics in objects),
        )


@dataclass(frozen=True)
class PassState:
    """Hold what the bucket has of one pass: its dataset and its SAEs."""

    manifest: DatasetManifest | None
    committed: frozenset[int]  # shards
    has_shards: bool  # anything of shards, committed or not
    rolling: bool  # shards that were passed have been deleted
    harvested: bool  # training can begin: every shard is committed, or in rolling mode will be
    saes: dict[str, SaeState]  # by name
    unfinished: tuple[str, ...]  # names of the SAEs that training resumes: not finished, withdrawn, or stopped where halving is on

    def harvested_manifest(self) -> DatasetManifest:
        """Return the manifest of a dataset that training needs. MissingObject if there is none."""
        if self.manifest is None:
            raise MissingObject("the activation dataset has no manifest: run scopemill harvest first")
        return self.manifest


@dataclass(frozen=True)
class SweepState:
    """Hold what the bucket had of a sweep at one moment.

    After a phase has changed the bucket, read a new one.
    """

    passes: tuple[PassState, ...]  # as in the plan
    saes: dict[str, SaeState]  # of all passes, by name

    @property
    def unfinished(self) -> list[str]:
        """Return the names of the SAEs that are left to train."""
        return [name for part in self.passes for name in part.unfinished]

    @staticmethod
    def read(bucket: Bucket, plan: PlanRecord) -> "SweepState":
        """Read the state in few listings.

        One listing serves all SAEs, and of the finished ones `cfg.json` is read; each pass takes two listings and its manifest.
        """
        objects = objects_of(bucket, [sae.root for sae in plan.saes])
        there = {root: set(paths) for root, paths in objects.items()}
        ended = [sae.layout for sae in plan.saes if sae.layout.config in there[sae.root]]
        for layout, finished in zip(ended, side_by_side(partial(is_finished, bucket), ended), strict=True):
            if not finished:  # an empty or broken cfg.json: the SAE is exported again
                there[layout.root].discard(layout.config)
        withdrawn = read_withdrawn(bucket, plan.name)
        saes = {sae.name: replace(SaeState.of(sae.layout, there[sae.root]), withdrawn=withdrawn.get(sae.name)) for sae in plan.saes}
        return SweepState(tuple(_pass_state(bucket, plan, part, saes) for part in plan.passes), saes)


def objects_of(bucket: Bucket, roots: Iterable[str], temporary: bool = False) -> dict[str, list[str]]:
    """List the objects below each of some folders.

    One listing of the folder that holds them all is enough.
    """
    found: dict[str, list[str]] = {root: [] for root in roots}
    if not found:
        return found
    for path in bucket.find(posixpath.commonpath(list(found)), temporary):
        root = path
        while root and root not in found:
            root = posixpath.dirname(root)
        if root:
            found[root].append(path)
    return found


def _pass_state(bucket: Bucket, plan: PlanRecord, part: PassRecord, saes: dict[str, SaeState]) -> PassState:
    layout = part.layout
    there = {f"{layout.root}/{name}" for name in bucket.names(layout.root)}
    manifest = read_manifest(bucket, part.dataset) if layout.manifest in there else None
    committed = frozenset(committed_shards(bucket, part.dataset) if layout.commits in there else ())
    ready = layout.rolling in there if plan.rolling else manifest is not None and len(committed) == manifest.shards
    return PassState(
        manifest=manifest,
        committed=committed,
        has_shards=layout.shards in there,
        rolling=layout.rolling in there,
        harvested=manifest is not None and ready,
        saes={sae.name: saes[sae.name] for sae in part.saes},
        unfinished=tuple(sae.name for sae in part.saes if _is_left(saes[sae.name], plan.halving)),
    )


def _is_left(state: SaeState, halving: bool) -> bool:
    return not state.finished and not state.withdrawn and not (halving and state.stopped)
