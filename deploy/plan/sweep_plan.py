"""Hold a sweep's plan: its passes, their harvests and their SAEs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scopemill.deploy.plan.cohorts import Entry, slots
from scopemill.deploy.plan.passes import Connection
from scopemill.deploy.plan.record import FinetuneRecord, PassRecord, PlanRecord, SaeRecord, digest_of
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.deploy.plan.work import Work
from scopemill.evaluator.fidelity.jobs import settings_of
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.task import HarvestTask
from scopemill.proto.dataset import ROW_LABELS
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import label


@dataclass(frozen=True)
class PlannedSae:
    """Describe one SAE of a sweep: its folder, its hooks and its configuration."""

    name: str  # unique in the sweep, short: names its consumer, its bar and its metrics
    layout: SaeLayout
    inputs: tuple[Hook, ...]
    targets: tuple[Hook, ...]  # empty: it reconstructs its inputs
    config: SaeConfig
    recipe: str  # its place in the sweep file: train, or train.variants[1]
    priority: int = 0  # SAEs of a larger number are trained first

    @property
    def hooks(self) -> Connection:
        """Return the hooks of the stream that feeds the SAE."""
        return self.inputs + self.targets

    @property
    def rivals(self) -> str:
        """Return the name of its group of rivals: SAEs that differ in their sparsity alone."""
        return f"{label(self.inputs, self.targets)}/{self.config.width}/{self.recipe}"

    @property
    def record(self) -> SaeRecord:
        """Return what the plan's record keeps of the SAE."""
        inputs, targets = (tuple(hook.name for hook in hooks) for hooks in (self.inputs, self.targets))
        return SaeRecord(name=self.name, root=self.layout.root, steps=self.config.steps, inputs=inputs, targets=targets)


@dataclass(frozen=True)
class Pass:
    """Describe one harvest, and the SAEs that are trained on it."""

    config: SweepConfig
    bucket: Bucket
    harvest: HarvestTask
    saes: list[PlannedSae]

    @property
    def card(self) -> ModelCard:
        """Return the language model's card."""
        return self.harvest.card

    @property
    def record(self) -> PassRecord:
        """Return what the plan's record keeps of the pass."""
        harvest = self.config.harvest
        saes = tuple(sae.record for sae in self.saes)
        return PassRecord(dataset=self.harvest.dataset, shards=harvest.tokens // harvest.rows_per_shard, saes=saes)

    def named(self, names: Collection[str]) -> list[PlannedSae]:
        """Return the SAEs of these names, in the plan's order."""
        return [sae for sae in self.saes if sae.name in names]

    def trainers(self, saes: list[PlannedSae]) -> int:
        """Count the trainers that it takes to train all of these SAEs at once."""
        train = self.config.train
        return sum(slots([train.parts(sae.config.width) for sae in of_stream], train.group) for of_stream in by_stream(saes))

    def stream(self, hooks: Connection) -> StreamSpec:
        """Return the stream of some hooks of the pass's dataset."""
        return stream_of(self.config, self.harvest.dataset, hooks)


@dataclass(frozen=True)
class SweepPlan:
    """Hold a sweep that has passed its cheap checks.

    These are all checks that need no loaded model and no harvest.
    """

    config: SweepConfig  # with absolute paths
    bucket: Bucket
    card: ModelCard
    passes: list[Pass]  # in turn: each is harvested and trained before the next
    given: SweepConfig  # with paths as they were written: they decide ids
    corpus: str = ""  # what is read of the corpora, and what is left out
    starts: Mapping[str, str] = field(default_factory=dict)  # finished SAEs to start from, by their places

    @property
    def saes(self) -> list[PlannedSae]:
        """Return the SAEs of all passes."""
        return [sae for part in self.passes for sae in part.saes]

    @property
    def hooks(self) -> Connection:
        """Return the hooks of all harvests, each once."""
        return tuple(dict.fromkeys(hook for part in self.passes for hook in part.harvest.hooks))

    @property
    def sheds(self) -> bool:
        """Return True if a pass's shards are deleted once its SAEs are finished.

        This makes room for the next pass.
        """
        return self.config.harvest.disk_gib is not None and len(self.passes) > 1

    @property
    def evaluation_settings(self) -> dict[str, Any]:
        """Return what decides the numbers of the sweep's evaluations."""
        harvest = self.config.harvest
        return settings_of(self.config.evaluation, self.config.dataset, harvest.context_length, harvest.outlier_norm)

    @property
    def record(self) -> PlanRecord:
        """Return the plan's record, by which the sweep's state is read."""
        return PlanRecord(
            digest=digest_of(self.given),
            name=self.config.name,
            text=self.config.dataset,
            rolling=self.config.harvest.rolling is not None,
            sheds=self.sheds,
            halving=self.config.train.halving is not None,
            evaluation_settings=self.evaluation_settings,
            passes=tuple(part.record for part in self.passes),
            finetuned=tuple(self._finetuned()),
        )

    def _finetuned(self) -> Iterator[FinetuneRecord]:
        """Yield the fine-tuned SAEs: each SAE in each arm."""
        if not self.config.train.finetune:
            return
        kl = self.config.train.finetune.kl
        for sae in self.saes:
            source = {"sae": sae.layout.root, "dataset": self.config.dataset}
            for arm in kl.arms:
                root = f"{sae.layout.root}-{kl.id(arm, source)}"
                yield FinetuneRecord(name=f"{sae.name}-{arm}", sae=sae.name, root=root, arm=arm, sparsity=sae.config.sparsity)

    def read_state(self) -> SweepState:
        """Read what the bucket holds of the sweep at this moment."""
        return SweepState.read(self.bucket, self.record)

    def work(self, state: SweepState | None = None) -> Work:
        """Return what is left to do at this moment, or in the given state."""
        return Work(self.bucket, self.record, state or self.read_state(), self.config.evaluation.checkpoints == "all")


def entries(train: TrainConfig, saes: list[PlannedSae]) -> list[Entry]:
    """Describe SAEs as the schedule needs them."""
    return [Entry(s.name, s.hooks, s.rivals if train.halving else None, s.priority, train.parts(s.config.width)) for s in saes]


def by_stream(saes: list[PlannedSae]) -> list[list[PlannedSae]]:
    """Group SAEs by the stream that feeds them."""
    streams: dict[tuple[Hook, ...], list[PlannedSae]] = {}
    for sae in saes:
        streams.setdefault(sae.hooks, []).append(sae)
    return list(streams.values())


def row_bytes(card: ModelCard, hooks: Sequence[Hook], itemsize: int) -> int:
    """Count the stored bytes of one token.

    They are a row at each hook, and the labels that name the token.
    """
    return itemsize * sum(card.widths[hook.site] for hook in hooks) + sum(label.itemsize for label in ROW_LABELS.values())


def stream_of(config: SweepConfig, dataset: str, hooks: Connection) -> StreamSpec:
    server = config.server
    return StreamSpec(dataset, tuple(hook.name for hook in hooks), config.train.batch_size, server.seed, server.shards_side_by_side)
