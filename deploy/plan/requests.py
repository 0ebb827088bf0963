"""Ask a sweep's run to do something, by small objects in ``sweeps/<name>/requests/``.

Whoever holds the sweep's lease carries them out, the oldest first, and removes each once its effect is on the bucket. Carrying one out
twice does no more than once.
"""

import time
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record

Action = Literal["stop", "retry", "delete", "evaluate"]
ACTIONS: tuple[Action, ...] = ("stop", "retry", "delete", "evaluate")


@dataclass(frozen=True)
class Request:
    """Describe one request."""

    id: str  # sorts by time
    action: Action
    saes: tuple[str, ...]  # names of the sweep's SAEs
    at: float  # seconds since 1970

    @staticmethod
    def new(action: Action, saes: tuple[str, ...]) -> "Request":
        """Return a request of this moment."""
        now = time.time()
        return Request(f"{int(now * 1000):015d}-{uuid.uuid4().hex[:8]}", action, saes, now)


def write_request(bucket: Bucket, sweep: str, request: Request) -> None:
    """Put a request where the sweep's run looks for it."""
    fields = {"action": request.action, "saes": list(request.saes), "at": request.at}
    bucket.write(_path(sweep, request.id), checksummed_record(fields))


def read_requests(bucket: Bucket, sweep: str) -> list[Request]:
    """Read the requests that wait, the oldest first, without damaged ones."""
    names = [name.removesuffix(".json") for name in bucket.names(SweepLayout(sweep).requests) if name.endswith(".json")]
    read = [_read(bucket, sweep, name) for name in sorted(names)]
    return [request for request in read if request]


def remove_request(bucket: Bucket, sweep: str, request: Request) -> None:
    """Remove a request that is carried out."""
    bucket.remove(_path(sweep, request.id))


def _read(bucket: Bucket, sweep: str, id: str) -> Request | None:
    try:
        fields: dict[str, Any] = read_record(bucket, _path(sweep, id))
        if fields["action"] not in ACTIONS:
            return None
        return Request(id, fields["action"], tuple(map(str, fields["saes"])), float(fields["at"]))
    except (MissingObject, CorruptObject, LookupError, TypeError, ValueError):
        return None


def _path(sweep: str, id: str) -> str:
    return f"{SweepLayout(sweep).requests}/{id}.json"
