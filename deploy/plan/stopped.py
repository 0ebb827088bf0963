"""The record of an SAE that was stopped early, ``stopped.json``."""

from dataclasses import dataclass

from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record


@dataclass(frozen=True)
class Stopped:
    """``stopped.json``: an SAE does not go on, because at this step these rivals had no more latents active and no more error."""

    step: int
    l0: float
    fvu: float
    dominated_by: list[str]

    @property
    def why(self) -> str:
        return f"outdone at step {self.step:,} by {', '.join(self.dominated_by)}"


def read_stopped(bucket: Bucket, layout: SaeLayout) -> Stopped | None:
    return Stopped(**read_record(bucket, layout.stopped)) if bucket.exists(layout.stopped) else None
