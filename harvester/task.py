"""Describe the harvest task: which activation dataset to make, from what, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scopemill.harvester.config import CorpusConfig, HarvestConfig, ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.proto.dataset import committed_identity, refuse_other_identity
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket

IN_FLIGHT = 2  # shards that one harvester holds at once: one is written while the next is computed

# The fields of `harvest` that decide a dataset's bytes. The others only decide the speed.
IDENTITY_FIELDS = ("context_length", "rows_per_shard", "tokens", "dtype", "seed", "calibration_rows", "outlier_norm", "outlier_spare")
# Added later: they enter an identity only where they have another value than this, under which the bytes are as before.
LATER_FIELDS = {"drop_first_positions": 0}


@dataclass(frozen=True)
class HarvestTask:
    """Describe one activation dataset: model, text, hooks, settings and place."""

    bucket: Bucket
    dataset: str
    model: ModelConfig
    card: ModelCard
    corpus: CorpusConfig
    config: HarvestConfig
    hooks: tuple[Hook, ...]
    reserved: int  # sequences at the start of the corpus, kept for evaluation and never harvested
    identity: dict[str, Any]
    text: str  # the dataset that holds the packed text: this one, or one that all passes of a sweep share

    @property
    def layout(self) -> DatasetLayout:
        """Return the object paths of the dataset."""
        return DatasetLayout(self.dataset)

    @property
    def text_layout(self) -> DatasetLayout:
        """Return the object paths of the dataset that holds the packed text."""
        return DatasetLayout(self.text)

    @property
    def text_identity(self) -> dict[str, Any]:
        """Return the identity of the packed text, which does not depend on the hooks."""
        return without_hooks(self.identity)

    def check_place(self) -> None:
        """Raise Conflict if a dataset of another identity, finished or started, is stored here."""
        for path, identity in ((self.layout.manifest, self.identity), (self.text_layout.packing, self.text_identity)):
            if self.bucket.exists(path):
                return refuse_other_identity(self.bucket.place(path), committed_identity(self.bucket, path), identity)


def identity(
    model: ModelConfig, card: ModelCard, corpus: CorpusConfig, harvest: HarvestConfig, hooks: Sequence[Hook], reserved: int
) -> dict[str, Any]:
    """Return everything that decides a dataset's bytes. Harvests with equal identities give equal bytes."""
    return {
        "model": f"{card.name}@{card.fingerprint}",
        "model.dtype": model.dtype,
        "hooks": [hook.name for hook in hooks],
        "reserved_sequences": reserved,
        **{f"corpus.{key}": value for key, value in corpus.identity.items()},
        **{f"harvest.{key}": getattr(harvest, key) for key in IDENTITY_FIELDS},
        **{f"harvest.{key}": getattr(harvest, key) for key, before in LATER_FIELDS.items() if getattr(harvest, key) != before},
    }


def without_hooks(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity without its hooks.

    This part decides the packed text. It decides each hook's rows too, unless the outlier filter is on, which looks at all hooks.
    """
    return {key: value for key, value in identity.items() if key != "hooks"}
