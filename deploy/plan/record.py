"""Write and read a plan's record, ``sweeps/<name>/plan.json``.

The record is enough to read the sweep's state without model or torch.
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import DatasetLayout, SaeLayout, SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record
from scopemill.trainer.config.finetuning import Arm

FORMAT = 2  # raise it with every change of the record, and of what an SAE's folder is named by


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SaeRecord(_Record):
    """Describe one SAE of a plan."""

    name: str
    root: str  # its folder in the bucket
    steps: int
    inputs: tuple[str, ...]  # names of hooks
    targets: tuple[str, ...]  # empty for an SAE that reconstructs its inputs

    @property
    def layout(self) -> SaeLayout:
        """Return the places of the SAE's objects."""
        return SaeLayout(self.root)


class PassRecord(_Record):
    """Describe one harvest of a plan, and the SAEs trained on it."""

    dataset: str
    shards: int  # asked for; the corpus may fill fewer
    saes: tuple[SaeRecord, ...]

    @property
    def layout(self) -> DatasetLayout:
        """Return the places of the dataset's objects."""
        return DatasetLayout(self.dataset)


class FinetuneRecord(_Record):
    """Describe one fine-tuned SAE of a plan."""

    name: str
    sae: str  # name of the SAE that it starts from
    root: str  # its folder in the bucket
    arm: Arm
    sparsity: float  # of its training


class PlanRecord(_Record):
    """Hold all that is needed to read a sweep's state."""

    digest: str  # of the sweep file's content, see `digest_of`
    name: str
    text: str  # the dataset that holds the packed text
    rolling: bool
    sheds: bool  # a pass's shards are deleted once its SAEs are finished
    halving: bool
    evaluation_settings: dict[str, Any]
    passes: tuple[PassRecord, ...]
    finetuned: tuple[FinetuneRecord, ...] = ()

    @property
    def saes(self) -> list[SaeRecord]:
        """Return the SAEs of all passes."""
        return [sae for part in self.passes for sae in part.saes]

    @property
    def layout(self) -> SweepLayout:
        """Return the places of the sweep's objects."""
        return SweepLayout(self.name)


def digest_of(config: SweepConfig) -> str:
    """Hash a sweep file's content, as parsed and with its overrides; SHA-256 in hexadecimal digits."""
    content = {"format": FORMAT, "sweep": config.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_plan(bucket: Bucket, record: PlanRecord) -> None:
    """Write the record into the sweep's folder, over an older one."""
    bucket.write(record.layout.plan, checksummed_record(record.model_dump(mode="json")))


def read_plan(bucket: Bucket, config: SweepConfig) -> PlanRecord | None:
    """Read the record of this very sweep file.

    Returns None if the bucket has none, or one of another content.
    """
    record = read_plan_of(bucket, config.name)
    return record if record and record.digest == digest_of(config) else None


def read_plan_of(bucket: Bucket, sweep: str) -> PlanRecord | None:
    """Read the record of a sweep's newest run.

    Returns None if the bucket has none that this version can read.
    """
    try:
        return PlanRecord.model_validate(read_record(bucket, SweepLayout(sweep).plan))
    except (MissingObject, CorruptObject, ValidationError):  # the caller plans anew, which gives the same
        return None
