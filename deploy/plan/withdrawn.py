"""Record which SAEs of a sweep are not trained because people said so, ``sweeps/<name>/withdrawn.json``.

The record is the sweep's own: another sweep that wants the same SAE trains it. A retry takes the SAE off the record.
"""

from collections.abc import Iterable
from typing import Literal

from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record

Why = Literal["stopped", "deleted"]


def read_withdrawn(bucket: Bucket, sweep: str) -> dict[str, Why]:
    """Read the names of the SAEs that were stopped or deleted on request."""
    try:
        found: dict[str, Why] = read_record(bucket, SweepLayout(sweep).withdrawn)["saes"]
        return found
    except (MissingObject, CorruptObject, LookupError):
        return {}


def withdraw(bucket: Bucket, sweep: str, names: Iterable[str], why: Why) -> None:
    """Put SAEs on the record.

    A deleted one stays deleted when it is stopped as well.
    """
    before = read_withdrawn(bucket, sweep)
    after = before | {name: "deleted" if before.get(name) == "deleted" else why for name in names}
    _write(bucket, sweep, before, after)


def take_up(bucket: Bucket, sweep: str, names: Iterable[str]) -> None:
    """Take SAEs off the record.

    The next run trains them, or the present one goes on.
    """
    before, again = read_withdrawn(bucket, sweep), set(names)
    _write(bucket, sweep, before, {name: why for name, why in before.items() if name not in again})


def _write(bucket: Bucket, sweep: str, before: dict[str, Why], after: dict[str, Why]) -> None:
    if after != before:
        bucket.write(SweepLayout(sweep).withdrawn, checksummed_record({"saes": after}))
