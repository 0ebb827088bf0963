"""Objects that carry their own checksum: safetensors' header has room for text, and JSON for a field more.

So tensors and records stay files that anybody reads, and what was damaged in the store or on its way is found before it is used.
Chunks of shards have theirs in Zarr's codec and in the commit record.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import crc32c

from scopemill.proto import metrics
from scopemill.proto.errors import CorruptObject
from scopemill.proto.storage.bucket import Bucket, Bytes

SEAL = "crc32c"
_LENGTH = 8  # bytes that say how long safetensors' header is
T = TypeVar("T")


def checksummed_tensors(data: bytes) -> tuple[Bytes, Bytes]:
    """The parts of a safetensors object that carries its checksum, from one that does not."""
    header, body = _parts(data)
    text = json.dumps({"__metadata__": {SEAL: _checksum(header, body)}} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(_LENGTH, "little") + text, body


def checksummed_record(fields: dict[str, Any]) -> bytes:
    """A JSON object with its checksum as one field more."""
    return json.dumps(fields | {SEAL: _checksum(fields)}, indent=1).encode()


def read_tensors(bucket: Bucket, path: str) -> bytes:
    """A sealed safetensors object. CorruptObject if it is damaged, or not one."""

    def read() -> bytes:
        data = bucket.read(path)
        try:
            header, body = _parts(data)
            whole = header.pop("__metadata__")[SEAL] == _checksum(header, body)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise _corrupt(bucket.place(path))
        return data

    return retry_corrupt_read(read)


def read_record(bucket: Bucket, path: str) -> dict[str, Any]:
    """The fields of a sealed JSON object. CorruptObject if it is damaged, or none."""

    def read() -> dict[str, Any]:
        try:
            fields = json.loads(bucket.read(path))
            whole = fields.pop(SEAL) == _checksum(fields)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
            raise CorruptObject(f"{bucket.place(path)} carries no checksum: it is damaged, or another version made it") from error
        if not whole:
            raise _corrupt(bucket.place(path))
        return fields

    return retry_corrupt_read(read)


def retry_corrupt_read(read: Callable[[], T]) -> T:
    """What is read; once more if it is corrupt, for it may have been damaged on its way while what lies in the store is whole."""
    try:
        return read()
    except CorruptObject:
        metrics.STORE_CORRUPT_READS.inc()
    try:
        return read()
    except CorruptObject:
        metrics.STORE_CORRUPT_READS.inc()
        raise


def _parts(data: bytes) -> tuple[dict[str, Any], memoryview]:
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    return json.loads(data[_LENGTH:end]), memoryview(data)[end:]


def _checksum(fields: dict[str, Any], body: Bytes = b"") -> str:
    """Of the fields, however they are written down, and of what follows them."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f"{crc32c.crc32c(body, crc32c.crc32c(text.encode())):08x}"


def _corrupt(place: str) -> CorruptObject:
    return CorruptObject(f"{place} does not match the checksum that it carries: restore it, or delete what it belongs to and make it anew")
