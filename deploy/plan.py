"""What a sweep will do, told before anything is started: every check, every SAE, every number for the dry run."""

import hashlib
import json
from dataclasses import dataclass

from scopemill.activation_server.keys import ServerKeys, TrainerKeys
from scopemill.activation_server.order import Order
from scopemill.deploy.sweep import SweepConfig
from scopemill.evaluator.actor import settings_of
from scopemill.harvester.corpus import check_corpus
from scopemill.harvester.language_model import ModelCard, describe
from scopemill.harvester.task import HarvestTask, identity
from scopemill.proto.bucket import Bucket
from scopemill.proto.dataset import (
    CHUNK_BYTES,
    ROW_LABELS,
    STORED_DTYPES,
    ArraySpec,
    DatasetManifest,
    committed_shards,
    read_manifest,
)
from scopemill.proto.errors import InputError, ModelError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config import SaeConfig


@dataclass(frozen=True)
class PlannedSae:
    name: str  # unique in the sweep, short: names its consumer, its bar and its metrics
    layout: SaeLayout
    hook: Hook
    config: SaeConfig


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
        manifest = self.manifest
        return manifest is not None and len(committed_shards(self.bucket, manifest.dataset)) == manifest.shards

    @property
    def evaluation_settings(self) -> dict:
        return settings_of(self.config.evaluation, self.config.dataset, self.config.harvest.context_length)

    def stream(self, hook: Hook) -> StreamSpec:
        server = self.config.server
        return StreamSpec(self.config.dataset, (hook.name,), self.config.train.batch_size, server.seed, server.shards_side_by_side)

    def facts(self) -> dict[str, str]:
        """The dry run's lines, each a name and what is to be said of it."""
        harvest, train = self.config.harvest, self.config.train
        shards = harvest.tokens // harvest.rows_per_shard
        rows = shards * harvest.rows_per_shard
        itemsize = STORED_DTYPES[harvest.dtype].itemsize
        per_row = sum(self.card.widths[h.site] for h in self.hooks) * itemsize + sum(t.itemsize for t in ROW_LABELS.values())
        steps = train.saes()[0].steps
        trained = sum(not self.bucket.exists(sae.layout.config) for sae in self.saes)
        done = len(committed_shards(self.bucket, self.config.dataset)) if self.manifest else 0
        read = sum(steps * train.batch_size * self.card.widths[h.site] * itemsize for h in self.hooks)
        each = len(self.saes) // len(self.hooks)
        return {
            "model": f"{self.card.name}, {self.card.layers} layers",
            "hooks": f"{len(self.hooks)}: {', '.join(h.name for h in self.hooks)}",
            "harvest": f"{rows:,} tokens in {shards} shards of {harvest.rows_per_shard:,} rows; {done} are committed",
            "on disk": f"{_size(rows * per_row)} of activations ({per_row:,} bytes a token)",
            "train": f"{len(self.saes)} SAEs ({each} at each hook), {trained} of them still to do",
            "each SAE": f"{steps:,} steps of {train.batch_size:,} rows, {steps * train.batch_size / rows:.2f} epochs",
            "data path": f"{_size(read)} read from the bucket once, {_size(read * each)} served to trainers",
            "evaluation": f"{self.config.evaluation.sequences:,} sequences of {harvest.context_length} tokens for each checkpoint",
        }


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
    Order.check(
        config.dataset, config.harvest.tokens // config.harvest.rows_per_shard, config.harvest.rows_per_shard, plan.stream(hooks[0])
    )
    saes = [_planned(plan, hook, sae) for hook in hooks for sae in config.train.saes()]
    plan.saes.extend(saes)
    return plan


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


def _planned(plan: SweepPlan, hook: Hook, sae: SaeConfig) -> PlannedSae:
    """An SAE's folder is named by all that decides its weights, so the same SAE in two sweeps is trained once."""
    decisive = {"sae": sae.model_dump(mode="json"), "dataset": plan.harvest.identity, "stream": vars(plan.stream(hook))}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    layout = SaeLayout.of(plan.card.name, hook.name, sae.width, sae.architecture, f"{sae.sparsity:g}-{digest}")
    return PlannedSae(f"{hook.layer}.{hook.site}/{sae.width}/{sae.architecture}/{sae.sparsity:g}", layout, hook, sae)


def _size(n: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if n < 1024:
            return f"{n:,.1f} {unit}"
        n /= 1024
    return f"{n:,.1f} PiB"
