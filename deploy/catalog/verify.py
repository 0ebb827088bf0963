"""Find what of a sweep is damaged, and take it back.

All that a later run may need is read. To take something back is to delete the object that commits it. The next run of the sweep then
makes it again.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from scopemill.deploy.plan.record import PassRecord, PlanRecord, SaeRecord
from scopemill.deploy.plan.state import PassState, SaeState, SweepState
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.finished import read_weights
from scopemill.proto.layout import RESUMABLE
from scopemill.proto.shards import verify_shard
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training import checkpoint

AT_ONCE = 4  # each reading thread holds a chunk or the weights of an SAE


@dataclass(frozen=True)
class Check:
    """Describe one thing to read, and the objects that commit it."""

    read: Callable[[], object]  # raises MissingObject or CorruptObject
    records: tuple[str, ...]


def take_back_damaged(bucket: Bucket, plan: PlanRecord, dry_run: bool) -> list[str]:
    """Take back what is damaged, and return a sentence for each thing.

    While the sweep runs, this would delete what it is about to use.
    """
    with ThreadPoolExecutor(AT_ONCE) as threads:
        checks = list(_checks(bucket, plan, SweepState.read(bucket, plan)))
        problems = list(threads.map(_problem, checks))
    damaged = [(check, problem) for check, problem in zip(checks, problems, strict=True) if problem]
    for check, _ in damaged if not dry_run else ():
        for record in check.records:
            bucket.remove(record)
    return [problem for _, problem in damaged]


def _problem(check: Check) -> str | None:
    try:
        check.read()
    except (CorruptObject, MissingObject) as error:
        return str(error)
    return None


def _checks(bucket: Bucket, plan: PlanRecord, state: SweepState) -> Iterator[Check]:
    for part, of_part in zip(plan.passes, state.passes, strict=True):
        yield from _shard_checks(bucket, part, of_part)
    for sae in plan.saes:
        yield from _sae_checks(bucket, sae, state.saes[sae.name])


def _shard_checks(bucket: Bucket, part: PassRecord, state: PassState) -> Iterator[Check]:
    if state.manifest:
        for shard in sorted(state.committed):
            yield Check(partial(verify_shard, bucket, state.manifest, shard), (part.layout.commit(shard),))


def _sae_checks(bucket: Bucket, sae: SaeRecord, state: SaeState) -> Iterator[Check]:
    """Yield the checks of an SAE: of checkpoints only those that are resumed or evaluated once more."""
    layout, resumed = sae.layout, () if state.finished else state.checkpoints[-RESUMABLE:]
    for step in state.checkpoints:
        place = layout.checkpoint(step)
        if step in resumed or step not in state.measured:
            # Earlier versions kept the optimiser state of the newest checkpoint only.
            optimizer = step in resumed and (step == state.step or bucket.exists(place.optimizer))
            again = (layout.config,) if state.finished and step == sae.steps else ()  # training has to end once more
            yield Check(partial(checkpoint.verify, bucket, layout, step, optimizer), (place.record, *again))
        if step in state.measured:
            yield Check(partial(Evaluation.read, bucket, place.metrics), (place.metrics,))
    if state.finished:
        yield Check(partial(read_weights, bucket, layout), (layout.config,))
        if bucket.exists(layout.metrics):  # a copy of the newest checkpoint's, written together with it
            yield Check(partial(Evaluation.read, bucket, layout.metrics), (layout.metrics, layout.checkpoint(state.step).metrics))
