"""What a sweep will do, told before anything is started: every check, every pass and every SAE."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from scopemill.activation_server.keys import ServerKeys, TrainerKeys
from scopemill.activation_server.order import Order
from scopemill.deploy.plan.cohorts import Entry, slots
from scopemill.deploy.plan.passes import Budget, Connection, pass_of, plan_passes
from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.evaluator.fidelity.jobs import settings_of
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.describe import describe
from scopemill.harvester.task import IN_FLIGHT, HarvestTask, identity, without_hooks
from scopemill.harvester.text.corpus import check_corpus
from scopemill.proto.chunks import CHUNK_BYTES, ArraySpec
from scopemill.proto.dataset import ROW_LABELS, STORED_DTYPES, DatasetManifest, committed_shards, read_manifest
from scopemill.proto.errors import Conflict, InputError, ModelError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout, SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config.grid import Grid, TrainConfig, Variant
from scopemill.trainer.config.identity import identity as sae_identity
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import connections, label


@dataclass(frozen=True)
class PlannedSae:
    name: str  # unique in the sweep, short: names its consumer, its bar and its metrics
    layout: SaeLayout
    inputs: tuple[Hook, ...]
    targets: tuple[Hook, ...]  # empty: it rebuilds what it reads
    config: SaeConfig
    recipe: str  # its place in the sweep file: train, or train.variants[1]
    priority: int = 0  # of those that are to be trained, the larger come first

    @property
    def hooks(self) -> Connection:
        """Those of the stream that feeds it."""
        return self.inputs + self.targets

    @property
    def rivals(self) -> str:
        """The same for those that differ in their sparsity alone."""
        return f"{label(self.inputs, self.targets)}/{self.config.width}/{self.recipe}"


@dataclass(frozen=True)
class Pass:
    """One harvest, and the SAEs that are trained on it."""

    config: SweepConfig
    bucket: Bucket
    harvest: HarvestTask
    saes: list[PlannedSae]

    @property
    def card(self) -> ModelCard:
        return self.harvest.card

    @property
    def manifest(self) -> DatasetManifest | None:
        return read_manifest(self.bucket, self.harvest.dataset) if self.bucket.exists(self.harvest.layout.manifest) else None

    @property
    def committed(self) -> set[int]:
        """The shards that are there."""
        return committed_shards(self.bucket, self.harvest.dataset)

    @property
    def harvested(self) -> bool:
        """Whether training can begin: every shard is committed, or in rolling mode will be."""
        manifest = self.manifest
        if self.config.harvest.rolling:
            return manifest is not None and self.bucket.exists(self.harvest.layout.rolling)
        return manifest is not None and len(self.committed) == manifest.shards

    @property
    def unfinished(self) -> list[PlannedSae]:
        """Those that training goes on with: neither finished, nor stopped early where that is asked for."""
        halving = self.config.train.halving
        left = [sae for sae in self.saes if not self.bucket.exists(sae.layout.config)]
        return [sae for sae in left if not (halving and self.bucket.exists(sae.layout.stopped))]

    def trainers(self, saes: list[PlannedSae]) -> int:
        """How many it takes to train these all at once."""
        train = self.config.train
        return sum(slots([train.parts(sae.config.width) for sae in of_stream], train.group) for of_stream in by_stream(saes))

    def stream(self, hooks: Connection) -> StreamSpec:
        return _stream(self.config, self.harvest.dataset, hooks)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that has passed every check that can be made without loading or harvesting anything."""

    config: SweepConfig  # with absolute paths
    bucket: Bucket
    card: ModelCard
    passes: list[Pass]  # in turn: each is harvested and trained before the next

    @property
    def saes(self) -> list[PlannedSae]:
        return [sae for part in self.passes for sae in part.saes]

    @property
    def hooks(self) -> Connection:
        """All that are harvested, each once."""
        return tuple(dict.fromkeys(hook for part in self.passes for hook in part.harvest.hooks))

    @property
    def text(self) -> DatasetLayout:
        """Where the packed text lies, that of the evaluation too."""
        return DatasetLayout(self.config.dataset)

    @property
    def sheds(self) -> bool:
        """Whether a pass's shards are deleted once its SAEs are finished, to make room for the next."""
        return self.config.harvest.disk_gib is not None and len(self.passes) > 1

    @property
    def evaluation_settings(self) -> dict:
        return settings_of(self.config.evaluation, self.config.dataset, self.config.harvest.context_length)


def entries(train: TrainConfig, saes: list[PlannedSae]) -> list[Entry]:
    """What the schedule has to know of SAEs."""
    return [Entry(s.name, s.hooks, s.rivals if train.halving else None, s.priority, train.parts(s.config.width)) for s in saes]


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
    hooks = tuple(card.hooks(config.harvest.layers, config.harvest.sites))
    if card.context_length and config.harvest.context_length > card.context_length:
        raise ModelError(
            f"harvest.context_length: {card.name} takes at most {card.context_length} tokens, not {config.harvest.context_length}"
        )
    reserved = 0 if config.evaluation.corpus else config.evaluation.sequences
    saes = _planned(config, card, hooks, reserved)
    groups = _passes(config, card, hooks, [sae.hooks for sae in saes])
    plan = SweepPlan(located, bucket, card, [])
    for number, group in enumerate(groups):
        dataset = config.dataset if len(groups) == 1 else f"{config.dataset}-pass-{number + 1}"
        # By the corpus as it is written in the file: a relative path stays the same when the folder moves.
        same = identity(config.model, card, config.corpus, config.harvest, group, reserved)
        task = HarvestTask(bucket, dataset, located.model, card, located.corpus, config.harvest, group, reserved, same, config.dataset)
        task.check_place()
        plan.passes.append(Pass(located, bucket, task, [sae for sae in saes if pass_of(sae.hooks, groups) == number]))
    check_corpus(located.corpus)
    if located.evaluation.corpus:
        check_corpus(located.evaluation.corpus)
    if located.server.keys:
        ServerKeys.load(located.server.keys)
        TrainerKeys.load(located.server.keys)
    _check_chunks(config, card, hooks)
    shards = config.harvest.tokens // config.harvest.rows_per_shard
    Order.check(config.dataset, shards, config.harvest.rows_per_shard, _stream(config, config.dataset, hooks))
    if config.harvest.rolling:
        for part in plan.passes:
            _check_rolling(part, shards)
    return plan


def row_bytes(card: ModelCard, hooks: Sequence[Hook], itemsize: int) -> int:
    """Of a row at each of these hooks as it is stored, and of the labels that say which token it is."""
    return itemsize * sum(card.widths[hook.site] for hook in hooks) + sum(label.itemsize for label in ROW_LABELS.values())


def _passes(config: SweepConfig, card: ModelCard, hooks: Connection, wanted: list[Connection]) -> list[Connection]:
    """The hooks of each pass: all that are asked for, or where they do not fit together, in parts those that SAEs read."""
    harvest = config.harvest
    shards = harvest.tokens // harvest.rows_per_shard
    limits = [
        ("harvest.disk_gib", harvest.disk_gib, shards * harvest.rows_per_shard),
        ("harvest.memory_gib", harvest.memory_gib, IN_FLIGHT * harvest.rows_per_shard),
    ]
    itemsize = STORED_DTYPES[harvest.dtype].itemsize
    budgets = [Budget(field, gib, rows) for field, gib, rows in limits if gib is not None]
    if all(row_bytes(card, hooks, itemsize) <= budget.row_bytes for budget in budgets):
        return [hooks]
    passes = plan_passes(wanted, budgets, lambda some: row_bytes(card, some, itemsize))
    if harvest.outlier_norm and len(passes) > 1:
        raise InputError(
            f"harvest.outlier_norm: a token is dropped for its norm at any hook of a pass, so rows would depend on how {len(passes)} "
            f"passes are cut: leave it out, or raise {' and '.join(budget.field for budget in budgets)} until one pass is enough"
        )
    return passes


def _check_rolling(part: Pass, shards: int) -> None:
    """InputError if rolling mode would come to a stop, Conflict if it would delete what was harvested to be kept."""
    harvest, train, side_by_side = part.config.harvest, part.config.train, part.config.server.shards_side_by_side
    if not part.bucket.exists(part.harvest.layout.rolling) and part.committed:
        raise Conflict(
            f"dataset {part.harvest.dataset!r} was harvested to be kept, and rolling mode deletes what trainers have passed: leave "
            "harvest.rolling out, or choose another harvest.dataset"
        )
    if (trainers := part.trainers(part.saes)) > train.at_once:
        raise InputError(
            f"harvest.rolling: all {len(part.saes)} SAEs have to train at once, because shards are deleted behind them, which takes "
            f"{trainers} trainers, and train.at_once is {train.at_once}: raise it or train.group, or make several sweeps"
        )
    # Until its next checkpoint a trainer may have to go back to the last one, so all shards between are kept.
    every = max(sae.config.checkpoint_every for sae in part.saes)
    batches = max(1, side_by_side * harvest.rows_per_shard // train.batch_size)  # of shards that are read side by side
    needed = min(shards, side_by_side * (-(-(every - 1) // batches) + 1))
    if harvest.rolling < needed:
        raise InputError(
            f"harvest.rolling: between two checkpoints ({every} steps) up to {needed} shards are needed, and "
            f"{harvest.rolling} may lie on disk: raise it, or lower train.checkpoint_every or server.shards_side_by_side"
        )


def _check_chunks(config: SweepConfig, card: ModelCard, hooks: Connection) -> None:
    """InputError if a shard's rows cannot be cut into equal chunks of a sensible size: a prime number of rows cannot."""
    rows = config.harvest.rows_per_shard
    for site in {hook.site for hook in hooks}:
        spec = ArraySpec.of(site, rows, card.widths[site], STORED_DTYPES[config.harvest.dtype])
        if spec.chunks > 1 and spec.chunk_bytes < CHUNK_BYTES // 16:
            raise InputError(
                f"harvest.rows_per_shard: {rows} rows can only be cut into chunks of {spec.chunk_rows} rows: take a power of two, or a "
                "number with many divisors"
            )


def _stream(config: SweepConfig, dataset: str, hooks: Connection) -> StreamSpec:
    server = config.server
    return StreamSpec(dataset, tuple(hook.name for hook in hooks), config.train.batch_size, server.seed, server.shards_side_by_side)


def _planned(config: SweepConfig, card: ModelCard, hooks: Connection, reserved: int) -> list[PlannedSae]:
    """Every SAE of every recipe, those of one stream together. InputError if two are the same, or hooks are not harvested."""
    same = identity(config.model, card, config.corpus, config.harvest, hooks, reserved)
    data = same if config.harvest.outlier_norm else without_hooks(same)
    saes = [
        _sae(config, card, data, inputs, targets, sae, place)
        for place, grid in config.train.grids.items()
        for inputs, targets in connections(grid, _hooks_of(grid, place, hooks), place)
        for sae in grid.saes()
    ]
    _check_differing(saes)
    taken = Counter(sae.name for sae in saes)
    named = [replace(sae, name=f"{sae.name}/{sae.recipe.removeprefix('train.')}") if taken[sae.name] > 1 else sae for sae in saes]
    priority = config.train.priority
    for pattern in priority:
        if not any(fnmatch(sae.name, pattern) for sae in named):
            raise InputError(f"train.priority: no SAE of the sweep matches {pattern!r}; one of them is {named[0].name!r}")
    ranked = [replace(sae, priority=max((n for p, n in priority.items() if fnmatch(sae.name, p)), default=0)) for sae in named]
    streams = {hooks: place for place, hooks in enumerate(dict.fromkeys(sae.hooks for sae in ranked))}
    return sorted(ranked, key=lambda sae: streams[sae.hooks])


def _sae(
    config: SweepConfig, card: ModelCard, data: dict, inputs: tuple[Hook, ...], targets: tuple[Hook, ...], sae: SaeConfig, place: str
) -> PlannedSae:
    """Its folder is named by all that decides its weights, so the same SAE in two sweeps, or in another pass, is trained once."""
    stream = _stream(config, config.dataset, inputs + targets)
    decisive = {"sae": sae_identity(sae, config.train.grids[place].filled), "dataset": data, "stream": vars(stream)}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    layout = SaeLayout.of(card.name, label(inputs, targets), sae.width, sae.architecture, f"{sae.sparsity:g}-{digest}")
    layers = "-".join(str(hook.layer) for hook in inputs)
    site = "-".join(dict.fromkeys(hook.site for hook in inputs + targets))
    return PlannedSae(f"{layers}.{site}/{sae.width}/{sae.architecture}/{sae.sparsity:g}", layout, inputs, targets, sae, place)


def _hooks_of(grid: Grid, place: str, hooks: Connection) -> Connection:
    """Those that a recipe is for: all, unless it names layers or sites."""
    if not isinstance(grid, Variant):
        return hooks
    for field, named, harvested in (
        ("layers", grid.layers or (), [hook.layer for hook in hooks]),
        ("sites", grid.sites or (), [hook.site for hook in hooks]),
    ):
        for one in named:
            if one not in harvested:
                there = ", ".join(map(str, dict.fromkeys(harvested)))
                raise InputError(f"{place}.{field}: {one} is not harvested: harvest.{field} gives {there}")
    layers, sites = grid.layers, grid.sites
    return tuple(h for h in hooks if (layers is None or h.layer in layers) and (sites is None or h.site in sites))


def _check_differing(saes: list[PlannedSae]) -> None:
    first: dict[str, PlannedSae] = {}
    for sae in saes:
        other = first.setdefault(sae.layout.root, sae)
        if other is not sae:
            raise InputError(f"{other.recipe} and {sae.recipe} are the same SAE {sae.name}: leave it out of one of them")
