"""What a sweep will do, told before anything is started: every check and every SAE."""

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch

from scopemill.activation_server.keys import ServerKeys, TrainerKeys
from scopemill.activation_server.order import Order
from scopemill.deploy.schedule import slots
from scopemill.deploy.sweep import SweepConfig
from scopemill.evaluator.actor import settings_of
from scopemill.harvester.corpus import check_corpus
from scopemill.harvester.language_model import ModelCard, describe
from scopemill.harvester.task import HarvestTask, identity
from scopemill.proto.bucket import Bucket
from scopemill.proto.dataset import (
    CHUNK_BYTES,
    STORED_DTYPES,
    ArraySpec,
    DatasetManifest,
    committed_shards,
    read_manifest,
)
from scopemill.proto.errors import Conflict, InputError, ModelError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config import SaeConfig
from scopemill.trainer.wiring import connections, label


@dataclass(frozen=True)
class PlannedSae:
    name: str  # unique in the sweep, short: names its consumer, its bar and its metrics
    layout: SaeLayout
    inputs: tuple[Hook, ...]
    targets: tuple[Hook, ...]  # empty: it rebuilds what it reads
    config: SaeConfig
    priority: int = 0  # of those that are to be trained, the larger come first

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """Those of the stream that feeds it."""
        return self.inputs + self.targets

    @property
    def rivals(self) -> str:
        """The same for those that differ in their sparsity alone."""
        return f"{label(self.inputs, self.targets)}/{self.config.width}"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that has passed every check that can be made without loading or harvesting anything."""

    config: SweepConfig  # with absolute paths
    bucket: Bucket
    harvest: HarvestTask
    saes: list[PlannedSae]

    @property
    def card(self) -> ModelCard:
        return self.harvest.card

    @property
    def hooks(self) -> tuple[Hook, ...]:
        return self.harvest.hooks

    @property
    def manifest(self) -> DatasetManifest | None:
        return read_manifest(self.bucket, self.config.dataset) if self.bucket.exists(self.harvest.layout.manifest) else None

    @property
    def harvested(self) -> bool:
        """Whether training can begin: every shard is committed, or in rolling mode will be."""
        manifest = self.manifest
        if self.config.harvest.rolling:
            return manifest is not None and self.bucket.exists(self.harvest.layout.rolling)
        return manifest is not None and len(committed_shards(self.bucket, manifest.dataset)) == manifest.shards

    def trainers(self, saes: list[PlannedSae]) -> int:
        """How many it takes to train these all at once."""
        return sum(slots(len(of_stream), self.config.train.group) for of_stream in by_stream(saes))

    @property
    def evaluation_settings(self) -> dict:
        return settings_of(self.config.evaluation, self.config.dataset, self.config.harvest.context_length)

    def stream(self, hooks: tuple[Hook, ...]) -> StreamSpec:
        server = self.config.server
        return StreamSpec(
            self.config.dataset, tuple(hook.name for hook in hooks), self.config.train.batch_size, server.seed, server.shards_side_by_side
        )


def by_stream(saes: list[PlannedSae]) -> list[list[PlannedSae]]:
    """Those of each stream."""
    streams: dict[tuple[Hook, ...], list[PlannedSae]] = {}
    for sae in saes:
        streams.setdefault(sae.hooks, []).append(sae)
    return list(streams.values())


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Check everything that can be checked cheaply, and say what there is to do. Raises InputError, Conflict or StorageError."""
    located = config.located()
    bucket = Bucket(located.bucket)
    bucket.check_writable()
    card = describe(located.model)
    hooks = card.hooks(config.harvest.layers, config.harvest.sites)
    if card.context_length and config.harvest.context_length > card.context_length:
        raise ModelError(
            f"harvest.context_length: {card.name} takes at most {card.context_length} tokens, not {config.harvest.context_length}"
        )
    reserved = 0 if config.evaluation.corpus else config.evaluation.sequences
    # By the corpus as it is written in the file: a relative path stays the same when the folder moves.
    same = identity(config.model, card, config.corpus, config.harvest, hooks, reserved)
    task = HarvestTask(bucket, config.dataset, located.model, card, located.corpus, config.harvest, tuple(hooks), reserved, same)
    task.check_place()
    check_corpus(located.corpus)
    if located.evaluation.corpus:
        check_corpus(located.evaluation.corpus)
    _check_chunks(task)
    if located.server.keys:
        ServerKeys.load(located.server.keys)
        TrainerKeys.load(located.server.keys)
    plan = SweepPlan(located, bucket, task, [])
    for inputs, targets in connections(config.train, tuple(hooks)):
        plan.saes.extend(_planned(plan, inputs, targets, sae) for sae in config.train.saes())
    for pattern in config.train.priority:
        if not any(fnmatch(sae.name, pattern) for sae in plan.saes):
            raise InputError(f"train.priority: no SAE of the sweep matches {pattern!r}; one of them is {plan.saes[0].name!r}")
    shards = config.harvest.tokens // config.harvest.rows_per_shard
    Order.check(config.dataset, shards, config.harvest.rows_per_shard, plan.stream(plan.saes[0].hooks))
    if config.harvest.rolling:
        _check_rolling(plan, shards)
    return plan


def _check_rolling(plan: SweepPlan, shards: int) -> None:
    """InputError if rolling mode would come to a stop, Conflict if it would delete what was harvested to be kept."""
    harvest, train, side_by_side = plan.config.harvest, plan.config.train, plan.config.server.shards_side_by_side
    if not plan.bucket.exists(plan.harvest.layout.rolling) and committed_shards(plan.bucket, plan.config.dataset):
        raise Conflict(
            f"dataset {plan.config.dataset!r} was harvested to be kept, and rolling mode deletes what trainers have passed: leave "
            "harvest.rolling out, or choose another harvest.dataset"
        )
    if (trainers := plan.trainers(plan.saes)) > train.at_once:
        raise InputError(
            f"harvest.rolling: all {len(plan.saes)} SAEs have to train at once, because shards are deleted behind them, which takes "
            f"{trainers} trainers, and train.at_once is {train.at_once}: raise it or train.group, or make several sweeps"
        )
    # Until its next checkpoint a trainer may have to go back to the last one, so all shards between are kept.
    batches = max(1, side_by_side * harvest.rows_per_shard // train.batch_size)  # of shards that are read side by side
    needed = min(shards, side_by_side * (-(-(train.checkpoint_every - 1) // batches) + 1))
    if harvest.rolling < needed:
        raise InputError(
            f"harvest.rolling: between two checkpoints ({train.checkpoint_every} steps) up to {needed} shards are needed, and "
            f"{harvest.rolling} may lie on disk: raise it, or lower train.checkpoint_every or server.shards_side_by_side"
        )


def _check_chunks(task: HarvestTask) -> None:
    """InputError if a shard's rows cannot be cut into equal chunks of a sensible size: a prime number of rows cannot."""
    rows = task.config.rows_per_shard
    for site in {hook.site for hook in task.hooks}:
        spec = ArraySpec.of(site, rows, task.card.widths[site], STORED_DTYPES[task.config.dtype])
        if spec.chunks > 1 and spec.chunk_bytes < CHUNK_BYTES // 16:
            raise InputError(
                f"harvest.rows_per_shard: {rows} rows can only be cut into chunks of {spec.chunk_rows} rows: take a power of two, or a "
                "number with many divisors"
            )


def _planned(plan: SweepPlan, inputs: tuple[Hook, ...], targets: tuple[Hook, ...], sae: SaeConfig) -> PlannedSae:
    """An SAE's folder is named by all that decides its weights, so the same SAE in two sweeps is trained once."""
    decisive = {"sae": sae.model_dump(mode="json"), "dataset": plan.harvest.identity, "stream": vars(plan.stream(inputs + targets))}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    layout = SaeLayout.of(plan.card.name, label(inputs, targets), sae.width, sae.architecture, f"{sae.sparsity:g}-{digest}")
    layers = "-".join(str(hook.layer) for hook in inputs)
    site = "-".join(dict.fromkeys(hook.site for hook in inputs + targets))
    name = f"{layers}.{site}/{sae.width}/{sae.architecture}/{sae.sparsity:g}"
    priority = max((n for pattern, n in plan.config.train.priority.items() if fnmatch(name, pattern)), default=0)
    return PlannedSae(name, layout, inputs, targets, sae, priority)
