"""Cut a shard's arrays into chunk objects, and read chunks against their committed checksums.

Arrays are uncompressed under the Zarr codecs ``[bytes, crc32c]``: a chunk object is its raw bytes, then their CRC-32C.
So harvester and server write and read chunk objects directly, and zarr reads the same arrays.
"""

import math
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np

from scopemill.proto.errors import CorruptObject
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import retry_corrupt_read
from scopemill.proto.storage.local_files import Bytes

# 32 MiB is large enough for object storage, and small enough to read K shards side by side.
CHUNK_BYTES = 32 * 2**20
# A block has its own checksum: a reader of local files checks one while it is in a core's cache, and holds no whole chunk.
BLOCK_BYTES = 256 * 1024
CRC_BYTES = 4
CRC_RESIDUE = 0x48674BC7  # the CRC-32C of any bytes followed by their own CRC-32C


@dataclass(frozen=True)
class ArraySpec:
    """Describe one array of a shard and its equal chunks: ``chunk_rows`` divides ``rows``."""

    name: str
    rows: int
    width: int | None  # None: one column, shape (rows,)
    dtype: np.dtype[Any]
    chunk_rows: int

    @staticmethod
    def of(name: str, rows: int, width: int | None, dtype: np.dtype[Any]) -> "ArraySpec":
        """Return the spec with the largest chunks of at most ``CHUNK_BYTES``."""
        most = max(1, CHUNK_BYTES // (dtype.itemsize * (width or 1)))
        return ArraySpec(name, rows, width, dtype, _largest_divisor(rows, most))

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row."""
        return self.dtype.itemsize * (self.width or 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return ``(rows, width)``, or ``(rows,)`` for one column."""
        return (self.rows,) if self.width is None else (self.rows, self.width)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Return the shape of one chunk."""
        return (self.chunk_rows, *self.shape[1:])

    @property
    def chunk_bytes(self) -> int:
        """Return the bytes of a chunk object, its checksum included."""
        return self.chunk_rows * self.row_bytes + CRC_BYTES

    @property
    def block_rows(self) -> int:
        """Return the rows of a block: a power of two, unless a chunk is smaller.

        Most batches take a power of two from a shard, and then end where a block ends.
        """
        most = max(1, BLOCK_BYTES // self.row_bytes)
        return min(self.chunk_rows, 1 << most.bit_length() - 1)

    @property
    def block_bytes(self) -> int:
        """Return the bytes of a full block."""
        return self.block_rows * self.row_bytes

    @property
    def blocks(self) -> int:
        """Return the blocks per chunk; the last block may be shorter."""
        return -(-self.chunk_rows // self.block_rows)

    @property
    def chunks(self) -> int:
        """Return the number of chunks."""
        return self.rows // self.chunk_rows

    def chunk_key(self, index: int) -> str:
        """Return the path of chunk ``index`` below the array's folder (Zarr v3's default key encoding)."""
        return f"c/{index}" if self.width is None else f"c/{index}/0"


def _largest_divisor(n: int, most: int) -> int:
    """Return the largest divisor of ``n`` that is at most ``most``."""
    divisors = (d for i in range(1, math.isqrt(n) + 1) if n % i == 0 for d in (i, n // i))
    return max(d for d in divisors if d <= most)


def block_checksums(data: np.ndarray, spec: ArraySpec) -> bytes:
    """Return the CRC-32C of each block of an array, chunk after chunk, as little-endian uint32."""
    chunks = np.split(data, spec.chunks)
    blocks = [chunk[i : i + spec.block_rows] for chunk in chunks for i in range(0, len(chunk), spec.block_rows)]
    return np.array([crc32c.crc32c(block.data.cast("B")) for block in blocks], dtype="<u4").tobytes()


def chunk_parts(data: np.ndarray) -> tuple[int, tuple[Bytes, Bytes]]:
    """Return the checksum of a C-contiguous chunk, and the two parts of its object."""
    raw = data.data.cast("B")
    crc = crc32c.crc32c(raw)
    return crc, (raw, crc.to_bytes(CRC_BYTES, "little"))


def read_chunk(bucket: Bucket, folder: str, spec: ArraySpec, index: int, committed_crc: int, buffer: memoryview) -> np.ndarray:
    """Read chunk ``index`` of an array and check it against its commit record.

    ``buffer`` holds ``spec.chunk_bytes``. Raises MissingObject for an absent chunk (zarr would read zeros), and
    CorruptObject for wrong bytes.
    """
    path = f"{folder}/{spec.chunk_key(index)}"
    return retry_corrupt_read(lambda: _read_chunk(bucket, path, spec, committed_crc, buffer))


def _read_chunk(bucket: Bucket, path: str, spec: ArraySpec, committed_crc: int, buffer: memoryview) -> np.ndarray:
    crc = 0

    def add_to_checksum(piece: memoryview, start: int) -> None:
        nonlocal crc
        crc = crc32c.crc32c(piece, crc if start else 0)

    stored = bucket.read_into(path, buffer, add_to_checksum)
    if len(stored) != spec.chunk_bytes:
        raise wrong_size(bucket.place(path), len(stored), spec)
    data, trailer = stored[:-CRC_BYTES], int.from_bytes(stored[-CRC_BYTES:], "little")
    if trailer != committed_crc or crc != CRC_RESIDUE:
        raise wrong_checksum(bucket.place(path))
    return np.frombuffer(data, dtype=spec.dtype).reshape(spec.chunk_shape)


def wrong_size(place: str, size: int, spec: ArraySpec) -> CorruptObject:
    """Return the error for a chunk object of another size than committed."""
    return CorruptObject(f"{place} has {size} bytes, not the committed {spec.chunk_bytes}: the shard has to be made again")


def wrong_checksum(place: str) -> CorruptObject:
    """Return the error for a chunk object with other bytes than committed."""
    return CorruptObject(f"{place} does not match its checksum in the commit record: the shard has to be made again")
