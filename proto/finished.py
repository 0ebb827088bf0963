"""Tell finished SAEs from broken ones, and bind weights by a checksum.

SAELens' two files have no place for a checksum: ``provenance.json`` beside them holds it.
"""

import json
from typing import Any

import crc32c

from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import SEAL, retry_corrupt_read
from scopemill.proto.storage.local_files import Bytes

WEIGHTS = "weights"  # the field of provenance.json that describes the weights
_LENGTH = 8  # bytes of the number that opens a safetensors file: the header's length


def is_finished(bucket: Bucket, layout: SaeLayout) -> bool:
    """Return True if ``cfg.json``, which is written last, is there and holds a JSON object."""
    try:
        return isinstance(json.loads(bucket.read(layout.config)), dict)
    except (MissingObject, ValueError, RecursionError):
        return False


def with_checksum(provenance: dict[str, Any], weights: Bytes) -> bytes:
    """Return ``provenance.json`` with the checksum of the weights beside it."""
    bound = {"bytes": len(weights), SEAL: _checksum(weights)}
    return json.dumps(provenance | {WEIGHTS: bound}, indent=1).encode()


def check_weights(place: str, weights: Bytes, provenance: Bytes | None) -> None:
    """Raise CorruptObject unless weights are a whole safetensors file, and those that their provenance names.

    The provenance of earlier versions and of other tools names none.
    """
    if not _is_whole(weights):
        raise CorruptObject(f"{place} is empty, truncated or no safetensors file: copy it again, or train the SAE again")
    try:
        named = json.loads(bytes(provenance or b"{}")).get(WEIGHTS) or {}
        checksum = named.get(SEAL)
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptObject(f"the provenance.json beside {place} is damaged: {error}") from error
    if checksum not in (None, found := _checksum(weights)):
        raise CorruptObject(
            f"{place} has the checksum {found}, and the provenance.json beside it names {checksum}: one of the two is damaged or of "
            "another SAE; copy both again, or delete provenance.json if the weights were changed on purpose"
        )


def read_weights(bucket: Bucket, layout: SaeLayout) -> bytes:
    """Return a finished SAE's weights; raise MissingObject or CorruptObject for missing or damaged ones."""

    def read() -> bytes:
        weights = bucket.read(layout.weights)
        provenance = bucket.read(layout.provenance) if bucket.exists(layout.provenance) else None
        check_weights(bucket.place(layout.weights), weights, provenance)
        return weights

    return retry_corrupt_read(read)


def _checksum(weights: Bytes) -> str:
    return f"{crc32c.crc32c(weights):08x}"


def _is_whole(data: Bytes) -> bool:
    """Return True if a safetensors file has all the bytes that its header speaks of."""
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    try:
        header = json.loads(bytes(data[_LENGTH:start]))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(ends) and len(data) == start + max(ends)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError):
        return False
