"""Write and read safetensors and JSON objects that carry their own checksum.

The checksum is one more field: of the header's metadata in safetensors, of the record in JSON. So other programs still
read these files, and damaged bytes are found before use. Chunks of shards have their checksums in Zarr's codec and in
the commit record (`proto.chunks`).
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import crc32c

from scopemill.proto import metrics
from scopemill.proto.errors import CorruptObject
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.local_files import Bytes

SEAL = "crc32c"
_LENGTH = 8  # bytes of the number that opens a safetensors file: the header's length
T = TypeVar("T")


def checksummed_tensors(data: bytes) -> tuple[Bytes, Bytes]:
    """Return the two parts of a safetensors object with its checksum added."""
    header, body = _parts(data)
    text = json.dumps({"__metadata__": {SEAL: _checksum(header, body)}} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(_LENGTH, "little") + text, body


def checksummed_record(fields: dict[str, Any]) -> bytes:
    """Return a JSON object with its checksum as an additional field."""
    return json.dumps(fields | {SEAL: _checksum(fields)}, indent=1).encode()


def checksum_of(header: Bytes) -> str:
    """Return the checksum that a safetensors object carries, from the first part of `checksummed_tensors`."""
    checksum: str = _parts(bytes(header))[0]["__metadata__"][SEAL]
    return checksum


def read_tensors(bucket: Bucket, path: str, checksum: str | None = None) -> bytes:
    """Read a checksummed safetensors object; raise CorruptObject for a damaged or another object.

    ``checksum`` is what another record says of the object.
    """

    def read() -> bytes:
        data = bucket.read(path)
        try:
            header, body = _parts(data)
            carried = header.pop("__metadata__")[SEAL]
            whole = carried == _checksum(header, body)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise _corrupt(bucket.place(path))
        if checksum not in (None, carried):
            raise CorruptObject(f"{bucket.place(path)} has the checksum {carried}, but {checksum} belongs here: it is another file")
        return data

    return retry_corrupt_read(read)


def read_record(bucket: Bucket, path: str) -> dict[str, Any]:
    """Read a checksummed JSON object's fields; raise CorruptObject for a damaged or another object."""

    def read() -> dict[str, Any]:
        try:
            fields: dict[str, Any] = json.loads(bucket.read(path))
            whole = fields.pop(SEAL) == _checksum(fields)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
            raise CorruptObject(
                f"{bucket.place(path)} carries no checksum: it is damaged or of another version; restore it, or delete it and make it again"
            ) from error
        if not whole:
            raise _corrupt(bucket.place(path))
        return fields

    return retry_corrupt_read(read)


def retry_corrupt_read(read: Callable[[], T]) -> T:
    """Return the result of a read; retry once if it is corrupt.

    Bytes may be damaged on their way while the stored object is whole.
    """
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
    """Return the checksum of fields, in any order and spacing, and of a body."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f"{crc32c.crc32c(body, crc32c.crc32c(text.encode())):08x}"


def _corrupt(place: str) -> CorruptObject:
    return CorruptObject(
        f"{place} does not match the checksum that it carries: restore it, or delete the folder that it belongs to and make it again"
    )
