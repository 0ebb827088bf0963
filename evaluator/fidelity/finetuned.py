"""Describe fine-tuning jobs and what they brought."""

from dataclasses import dataclass

from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record
from scopemill.trainer.config.finetuning import Arm


@dataclass(frozen=True)
class FinetuneJob:
    """Describe one SAE to fine-tune in one arm."""

    name: str
    source: str  # folder of the finished SAE, any fsspec URL
    bucket_url: str  # bucket of the fine-tuned SAE
    root: str  # its folder there
    arm: Arm
    sparsity: float | None = None  # of its training, where known


@dataclass(frozen=True)
class Finetuned:
    """Record what fine-tuning brought: the same measurements on the same held-out text before and after."""

    arm: Arm
    source: str
    steps: int
    tokens: int
    loss_clean: float
    before: dict[str, float]
    after: dict[str, float]
    history: list[dict[str, float]]

    @staticmethod
    def read(bucket: Bucket, layout: SaeLayout) -> "Finetuned":
        """Read the record of a fine-tuned SAE. CorruptObject if it is damaged."""
        return Finetuned(**read_record(bucket, layout.finetuned))
