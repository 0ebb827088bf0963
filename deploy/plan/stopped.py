"""Read the record of an SAE that was stopped early, ``stopped.json``."""

from dataclasses import dataclass

from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record


@dataclass(frozen=True)
class Stopped:
    """Record why an SAE was stopped.

    At ``step`` each of these rivals had no higher L0 and no higher FVU.
    """

    step: int
    l0: float
    fvu: float
    dominated_by: list[str]

    @property
    def reason(self) -> str:
        """Return the reason in words."""
        return f"dominated at step {self.step:,} by {', '.join(self.dominated_by)}"


def read_stopped(bucket: Bucket, layout: SaeLayout) -> Stopped | None:
    """Read an SAE's record; None if it was not stopped, or its record is damaged."""
    try:
        return Stopped(**read_record(bucket, layout.stopped))
    except (MissingObject, CorruptObject):
        return None
