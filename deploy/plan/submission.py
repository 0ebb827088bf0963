"""Write and read what a sweep's newest run was given, ``sweeps/<name>/submission.json``."""

from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from scopemill.proto.errors import CorruptObject, InputError, MissingObject
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record


class Submission(BaseModel):
    """Hold the sweep file of the newest run as given, to start it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweep: dict[str, Any]  # relative paths as they were written: they decide ids
    folder: str  # in which relative paths were meant


class Stored(NamedTuple):
    """Hold a submission, and the bucket that it was found in."""

    submission: Submission
    bucket: str


def write_submission(bucket: Bucket, submission: Submission) -> None:
    """Write what a run was started with into the sweep's folder."""
    bucket.write(SweepLayout(submission.sweep["name"]).submission, checksummed_record(submission.model_dump()))


def read_submission(bucket: Bucket, sweep: str) -> Submission | None:
    """Read what a sweep's newest run was started with, or return None."""
    try:
        return Submission.model_validate(read_record(bucket, SweepLayout(sweep).submission))
    except (MissingObject, CorruptObject, ValidationError):
        return None


def stored_at(place: str) -> Stored | None:
    """Return the submission of a sweep file that lies in a bucket.

    ``place`` is absolute. Returns None for any other file.
    """
    root, _, rest = place.rpartition("/sweeps/")
    name = rest.removesuffix("/sweep.yaml")
    try:
        found = read_submission(Bucket(root), name) if root and name != rest else None
    except InputError:  # nothing that a sweep could be called
        return None
    return Stored(found, root) if found else None
