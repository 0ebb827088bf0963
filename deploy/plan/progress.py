"""Write and read how far a sweep's run is, ``sweeps/<name>/progress.json``.

Its driver rewrites it every few seconds, so whoever reaches the bucket can follow the sweep.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record

WRITE_SECONDS = 2.0
MOST_LINES = 12  # of the driver's log

Outcome = Literal["waiting", "training", "finished", "stopped", "interrupted", "failed"]


class SaeProgress(BaseModel):
    """Describe one SAE that this run trains or has trained, by its newest row."""

    model_config = ConfigDict(extra="ignore")

    state: Outcome = "waiting"
    step: int = 0
    tries: int = 0
    reason: str = ""
    row: dict[str, float | None] | None = None  # None stands for a number that is not finite


class SweepProgress(BaseModel):
    """Describe a run: its phase, its newest log lines and its SAEs."""

    model_config = ConfigDict(extra="ignore")

    sweep: str
    started: float  # seconds since 1970, by the driver's clock
    written: float
    phase: str = ""  # in words
    done: int = 0
    total: int = 0
    says: list[str] = []
    ended: bool = False
    error: str | None = None  # why the run ended, if it did not succeed
    saes: dict[str, SaeProgress] = {}


def write_progress(bucket: Bucket, progress: SweepProgress) -> None:
    """Write a run's progress over the older one."""
    record = checksummed_record(progress.model_dump(mode="json"))
    bucket.write(SweepLayout(progress.sweep).progress, record, durable=False)


def read_progress(bucket: Bucket, sweep: str) -> SweepProgress | None:
    """Read the newest run's progress; None if there is none that this version can read."""
    try:
        return SweepProgress.model_validate(read_record(bucket, SweepLayout(sweep).progress))
    except (MissingObject, CorruptObject, ValidationError):
        return None
