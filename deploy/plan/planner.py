"""Plan a sweep before anything is started: every check, every pass and every SAE."""

import hashlib
import json
import posixpath
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from scopemill.activation_server.order import group_sizes
from scopemill.deploy.plan.checks import check_context, check_rolling, check_shards, check_starts, check_work, hooks_of
from scopemill.deploy.plan.held_out import reserved_sequences
from scopemill.deploy.plan.passes import Budget, Connection, pass_of, plan_passes
from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.deploy.plan.sweep_plan import Pass, PlannedSae, SweepPlan, row_bytes, stream_of
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.describe import describe
from scopemill.harvester.task import IN_FLIGHT, HarvestTask, identity, without_hooks
from scopemill.proto.dataset import STORED_DTYPES
from scopemill.proto.errors import InputError, StorageError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config.grid import Grid, Variant
from scopemill.trainer.config.identity import identities
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import connections, label


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Make every check that is cheap, and plan the passes and SAEs.

    What only finished phases needed is not checked. Raises InputError, Conflict or StorageError.
    """
    try:
        plan = lay_out(config)
        work = plan.work()
        packed = plan.bucket.exists(plan.passes[0].harvest.text_layout.packing)
    except StorageError:
        Bucket(config.located().bucket).check_writable()  # tells what is wrong with the bucket, where it can
        raise
    read = check_work(plan, work, packed)
    plan = replace(plan, corpus=read, starts=check_starts(plan.card, plan.bucket, plan.saes))
    if config.harvest.rolling:
        for part in plan.passes:
            check_rolling(part)
    return plan


def lay_out(config: SweepConfig) -> SweepPlan:
    """Plan the passes and SAEs, to look at them: the bucket need not be writable.

    Raises InputError, Conflict or StorageError.
    """
    located = config.located()
    bucket = Bucket(located.bucket)
    card = describe(located.model)
    hooks = hooks_of(config, card)
    check_context(config, card)
    check_shards(config, card, stream_of(config, config.dataset, hooks))
    return SweepPlan(located, bucket, card, _passes_of(config, located, bucket, card, hooks), config)


def _passes_of(config: SweepConfig, located: SweepConfig, bucket: Bucket, card: ModelCard, hooks: Connection) -> list[Pass]:
    """Plan the passes with their SAEs. Conflict if a dataset of another identity lies at the place of one."""
    reserved = reserved_sequences(bucket, config)
    saes = _planned(config, bucket, card, hooks, reserved)
    groups = _passes(config, card, hooks, [sae.hooks for sae in saes])
    passes = []
    for number, group in enumerate(groups):
        dataset = config.dataset if len(groups) == 1 else f"{config.dataset}-pass-{number + 1}"
        # By the corpus as it is written in the file: a relative path stays the same when the folder moves.
        same = identity(config.model, card, config.corpus, config.harvest, group, reserved)
        task = HarvestTask(bucket, dataset, located.model, card, located.corpus, config.harvest, group, reserved, same, config.dataset)
        task.check_place()
        passes.append(Pass(located, bucket, task, [sae for sae in saes if pass_of(sae.hooks, groups) == number]))
    return passes


def _passes(config: SweepConfig, card: ModelCard, hooks: Connection, wanted: list[Connection]) -> list[Connection]:
    """Return the hooks of each pass: all of the harvest, or where they exceed a budget, those that SAEs read, in parts."""
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
            f"harvest.outlier_norm: a token is dropped for its norm at any hook of its pass, so rows would depend on how the {len(passes)} "
            f"passes are cut: leave the field out, or raise {' and '.join(budget.field for budget in budgets)} until one pass is enough"
        )
    return passes


def _planned(config: SweepConfig, bucket: Bucket, card: ModelCard, hooks: Connection, reserved: int) -> list[PlannedSae]:
    """Plan every SAE of every recipe, grouped by stream. InputError if two are equal, or a hook is not harvested."""
    same = identity(config.model, card, config.corpus, config.harvest, hooks, reserved)
    data = same if config.harvest.outlier_norm else without_hooks(same)
    candidates = [
        _sae(config, card, data, inputs, targets, sae, place)
        for place, grid in config.train.grids.items()
        for inputs, targets in connections(grid, _hooks_of(grid, place, hooks), place)
        for sae in grid.saes()
    ]
    saes = _at_home(bucket, candidates)
    _check_differing(saes)
    ranked = _ranked(_uniquely_named(saes), config.train.priority)
    streams = {hooks: place for place, hooks in enumerate(dict.fromkeys(sae.hooks for sae in ranked))}
    return sorted(ranked, key=lambda sae: streams[sae.hooks])


def _uniquely_named(saes: list[PlannedSae]) -> list[PlannedSae]:
    """Add the recipe to names that several SAEs share."""
    taken = Counter(sae.name for sae in saes)
    return [replace(sae, name=f"{sae.name}/{sae.recipe.removeprefix('train.')}") if taken[sae.name] > 1 else sae for sae in saes]


def _ranked(saes: list[PlannedSae], priority: dict[str, int]) -> list[PlannedSae]:
    """Give each SAE the highest number of the patterns that match its name. InputError for a pattern without a match."""
    for pattern in priority:
        if not any(fnmatch(sae.name, pattern) for sae in saes):
            raise InputError(f"train.priority: no SAE of the sweep matches {pattern!r}; one of them is {saes[0].name!r}")
    return [replace(sae, priority=max((n for p, n in priority.items() if fnmatch(sae.name, p)), default=0)) for sae in saes]


def _sae(
    config: SweepConfig,
    card: ModelCard,
    data: dict[str, Any],
    inputs: tuple[Hook, ...],
    targets: tuple[Hook, ...],
    sae: SaeConfig,
    place: str,
) -> list[PlannedSae]:
    """Plan one SAE. All that decides its weights names its folder, so an SAE of two sweeps, or of another pass, is trained once.

    The first is the SAE in its own folder; the others lie where an earlier version, which named it by more, may have left it.
    """
    stream = stream_of(config, config.dataset, inputs + targets)
    grid, others = config.train.grids[place], {"dataset": data, "stream": _order_of(config, stream)}
    decisive = [{"sae": one, **others} for one in identities(sae, grid.filled, grid.template)]
    digests = [hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:8] for one in decisive]
    path = card.name, label(inputs, targets), sae.width, sae.architecture
    layouts = [SaeLayout.of(*path, f"{sae.sparsity:g}-{digest}") for digest in digests]
    layers = "-".join(str(hook.layer) for hook in inputs)
    site = "-".join(dict.fromkeys(hook.site for hook in inputs + targets))
    name = f"{layers}.{site}/{sae.width}/{sae.architecture}/{sae.sparsity:g}"
    return [PlannedSae(name, layout, inputs, targets, config.located_start(sae), place) for layout in layouts]


def _at_home(bucket: Bucket, candidates: list[list[PlannedSae]]) -> list[PlannedSae]:
    """Choose each SAE's folder: the first of its candidates that is there, or else its own."""
    parents = list(dict.fromkeys(posixpath.dirname(first.layout.root) for first, *_ in candidates))
    there = {f"{parent}/{name}" for parent, names in zip(parents, side_by_side(bucket.names, parents), strict=True) for name in names}
    return [next((one for one in places if one.layout.root in there), places[0]) for places in candidates]


def _order_of(config: SweepConfig, stream: StreamSpec) -> dict[str, Any]:
    """Return what decides the order of rows.

    A stream whose groups of shards are those of version 1 keeps its identity.
    """
    shards, most = config.harvest.tokens // config.harvest.rows_per_shard, stream.shards_side_by_side
    first_version = [min(most, shards - start) for start in range(0, shards, most)]
    return vars(stream) | ({} if group_sizes(shards, most) == first_version else {"groups": "even"})


def _hooks_of(grid: Grid, place: str, hooks: Connection) -> Connection:
    """Return the hooks that a recipe is for: all, unless it names layers or sites."""
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
            raise InputError(f"{other.recipe} and {sae.recipe} both describe the SAE {sae.name}: leave it out of one of them")
