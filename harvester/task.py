"""What a harvester is told: one activation dataset to make."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scopemill.harvester.config import CorpusConfig, HarvestConfig, ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.proto.dataset import committed_identity, refuse_other_identity
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket

# What of a harvest decides its bytes; the other fields say how fast they come.
DECISIVE = ("context_length", "rows_per_shard", "tokens", "dtype", "seed", "calibration_rows", "outlier_norm", "outlier_spare")


@dataclass(frozen=True)
class HarvestTask:
    bucket: Bucket
    dataset: str
    model: ModelConfig
    card: ModelCard
    corpus: CorpusConfig
    config: HarvestConfig
    hooks: tuple[Hook, ...]
    reserved: int  # sequences at the corpus' start that are set apart for evaluation
    identity: dict[str, Any]
    text: str  # the dataset whose packed text is harvested: this one, or one that all passes of a sweep share

    @property
    def layout(self) -> DatasetLayout:
        return DatasetLayout(self.dataset)

    @property
    def text_layout(self) -> DatasetLayout:
        return DatasetLayout(self.text)

    @property
    def text_identity(self) -> dict[str, Any]:
        """Of the packed text, which is the same whatever hooks are read."""
        return without_hooks(self.identity)

    def check_place(self) -> None:
        """Conflict if a dataset of another identity lies at this place, whole or begun."""
        for path, same in ((self.layout.manifest, self.identity), (self.text_layout.packing, self.text_identity)):
            if self.bucket.exists(path):
                return refuse_other_identity(self.bucket.place(path), committed_identity(self.bucket, path), same)


def identity(
    model: ModelConfig, card: ModelCard, corpus: CorpusConfig, harvest: HarvestConfig, hooks: Sequence[Hook], reserved: int
) -> dict[str, Any]:
    """Everything that decides a dataset's bytes. Two harvests with the same identity are the same harvest."""
    return {
        "model": f"{card.name}@{card.fingerprint}",
        "model.dtype": model.dtype,
        "hooks": [hook.name for hook in hooks],
        "reserved_sequences": reserved,
        **{f"corpus.{key}": value for key, value in corpus.model_dump().items()},
        **{f"harvest.{key}": getattr(harvest, key) for key in DECISIVE},
    }


def without_hooks(identity: dict[str, Any]) -> dict[str, Any]:
    """What decides the bytes of each single hook: where no tokens are dropped, rows do not depend on the other hooks."""
    return {key: value for key, value in identity.items() if key != "hooks"}
