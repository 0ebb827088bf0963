"""The activation dataset: its manifest, its shards' schema and their commit records.

A shard is a Zarr v3 group with one array per hook, ``(rows, d)``, and three arrays of one column that say which token a
row is. Arrays are uncompressed under the codecs ``[bytes, crc32c]``, so a chunk object is its raw bytes followed by
their CRC-32C: harvester and server write and read these objects themselves, and zarr reads the very same arrays.
"""

import base64
import math
import re
from typing import Any, Literal, TypeVar

import crc32c
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from scopemill.proto.errors import Conflict, CorruptObject, MissingObject
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket, Bytes
from scopemill.proto.storage.checksums import read_record, retry_corrupt_read

FORMAT = 3  # of a dataset: 1 had no checksums of blocks, 2 blocks of any number of rows
# A chunk of 32 MiB is large enough for object storage and small enough that K shards are read side by side.
CHUNK_BYTES = 32 * 2**20
# A block is checked by itself, so that a reader of local files needs no chunk in memory; it fits a core's cache.
BLOCK_BYTES = 256 * 1024
CRC_BYTES = 4
CRC_RESIDUE = 0x48674BC7  # the CRC-32C of any bytes followed by their own CRC-32C
ROW_LABELS = {"token_id": np.dtype("<i4"), "document": np.dtype("<i8"), "position": np.dtype("<i4")}
# bfloat16 has no Zarr data type: its bits are stored as uint16 under this attribute.
LOGICAL_DTYPE = "logical_dtype"
STORED_DTYPES = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4")}

_COMMIT = re.compile(r"(\d{5,})\.json")  # file managers leave things of their own beside them
Dtype = Literal["bfloat16", "float32"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


R = TypeVar("R", bound=_Record)


class HookStats(_Record):
    """One hook of a dataset. ``scale`` is Gemma Scope's C: rows on disk are raw / C, so that E||x||^2 = 1."""

    name: str
    d: int
    scale: float
    mean: str  # mean of the raw activations over the calibration rows, float64, see `vector`
    norm_limit: float | None  # the outlier filter: tokens whose raw norm here is above this are not kept

    @property
    def mean_vector(self) -> np.ndarray:
        return vector(self.mean)


class DatasetManifest(_Record):
    """``dataset.json``: all that a reader needs, and all that a writer must agree with."""

    format: int = FORMAT
    dataset: str
    identity: dict[str, Any]  # what the user asked for: a second harvest here must ask for the same
    model: str
    context_length: int
    dtype: Dtype
    hooks: tuple[HookStats, ...]
    rows_per_shard: int
    shards: int
    seed: int
    calibration_rows: int

    @field_validator("format")
    @classmethod
    def _known(cls, format: int) -> int:
        if format != FORMAT:
            raise ValueError(
                f"this dataset has format {format}, and this version reads format {FORMAT} only: harvest it anew under another name"
            )
        return format

    def hook(self, name: str) -> HookStats:
        for hook in self.hooks:
            if hook.name == name:
                return hook
        raise MissingObject(f"dataset {self.dataset!r} holds no hook {name!r}; it holds {', '.join(h.name for h in self.hooks)}")

    @property
    def itemsize(self) -> int:
        return STORED_DTYPES[self.dtype].itemsize

    def array(self, hook: str) -> "ArraySpec":
        return ArraySpec.of(hook, self.rows_per_shard, self.hook(hook).d, STORED_DTYPES[self.dtype])

    @property
    def label_arrays(self) -> list["ArraySpec"]:
        return [ArraySpec.of(name, self.rows_per_shard, None, dtype) for name, dtype in ROW_LABELS.items()]


class ArraySpec(_Record):
    """One array of a shard and how it is cut into chunk objects. Chunks are equal: ``chunk_rows`` divides ``rows``."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str
    rows: int
    width: int | None  # None: one column, shape (rows,)
    dtype: np.dtype
    chunk_rows: int

    @staticmethod
    def of(name: str, rows: int, width: int | None, dtype: np.dtype) -> "ArraySpec":
        most = max(1, CHUNK_BYTES // (dtype.itemsize * (width or 1)))
        return ArraySpec(name=name, rows=rows, width=width, dtype=dtype, chunk_rows=_largest_divisor(rows, most))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows,) if self.width is None else (self.rows, self.width)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (self.chunk_rows, *self.shape[1:])

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk object, its checksum included."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize + CRC_BYTES

    @property
    def block_rows(self) -> int:
        """A power of two, as what a batch takes of a shard mostly is: then it ends where a block ends."""
        most = max(1, BLOCK_BYTES // (self.dtype.itemsize * (self.width or 1)))
        return min(self.chunk_rows, 1 << most.bit_length() - 1)

    @property
    def block_bytes(self) -> int:
        return self.block_rows * self.dtype.itemsize * (self.width or 1)

    @property
    def blocks(self) -> int:
        """Blocks of a chunk; the last one may be shorter."""
        return -(-self.chunk_rows // self.block_rows)

    @property
    def chunks(self) -> int:
        return self.rows // self.chunk_rows

    def chunk_key(self, index: int) -> str:
        """The object of chunk ``index``, below the array's folder (Zarr v3's default key encoding)."""
        return f"c/{index}" if self.width is None else f"c/{index}/0"


class HookSums(_Record):
    """Sums over a shard's rows as stored (scaled), in float64."""

    count: int
    sum_x: str  # vector of length d, see `vector`
    sum_squared_norm: float
    max_norm: float


class ShardCommit(_Record):
    """``commits/00017.json``, written last and only once: the shard exists because this does."""

    shard: int
    rows: int
    dropped_outliers: int
    sums: dict[str, HookSums]
    checksums: dict[str, list[int]]  # per array, the CRC-32C of each chunk
    blocks: dict[str, str]  # per hook, the CRC-32C of each block, chunk after chunk: little-endian uint32 as base64

    def block_checksums(self, spec: ArraySpec, index: int) -> np.ndarray:
        """The CRC-32C of each block of a chunk."""
        return np.frombuffer(base64.b64decode(self.blocks[spec.name]), dtype="<u4")[index * spec.blocks : (index + 1) * spec.blocks]


class RollingRecord(_Record):
    """``rolling.json``: shards of this dataset are made while trainers read, and deleted behind them."""

    low: int  # positions before it (see `Order.positions`) are, or will be, deleted


def _largest_divisor(n: int, most: int) -> int:
    """The largest divisor of ``n`` that is at most ``most``."""
    divisors = (d for i in range(1, math.isqrt(n) + 1) if n % i == 0 for d in (i, n // i))
    return max(d for d in divisors if d <= most)


def pack_vector(x: np.ndarray) -> str:
    """A float64 vector as text that loses no bit."""
    return base64.b64encode(np.ascontiguousarray(x, dtype="<f8").tobytes()).decode("ascii")


def vector(text: str) -> np.ndarray:
    """The inverse of ``pack_vector``."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8")


def block_checksums(data: np.ndarray, spec: ArraySpec) -> bytes:
    """The CRC-32C of each block of an array's rows, as a commit record holds them before they are made text."""
    chunks = np.split(data, spec.chunks)
    blocks = [chunk[i : i + spec.block_rows] for chunk in chunks for i in range(0, len(chunk), spec.block_rows)]
    return np.array([crc32c.crc32c(memoryview(block).cast("B")) for block in blocks], dtype="<u4").tobytes()


def chunk_parts(data: np.ndarray) -> tuple[int, tuple[Bytes, Bytes]]:
    """The checksum of a C-contiguous chunk, and the parts that its object is made of."""
    raw = memoryview(data).cast("B")
    crc = crc32c.crc32c(raw)
    return crc, (raw, crc.to_bytes(CRC_BYTES, "little"))


def read_chunk(bucket: Bucket, folder: str, spec: ArraySpec, index: int, committed_crc: int, buffer: memoryview) -> np.ndarray:
    """Chunk ``index`` of an array, checked against its commit record. ``buffer`` holds ``spec.chunk_bytes``.

    A missing object is an error (zarr would read zeros), and so are wrong bytes: CorruptObject names the object.
    """
    path = f"{folder}/{spec.chunk_key(index)}"
    return retry_corrupt_read(lambda: _read_chunk(bucket, path, spec, committed_crc, buffer))


def _read_chunk(bucket: Bucket, path: str, spec: ArraySpec, committed_crc: int, buffer: memoryview) -> np.ndarray:
    crc = 0

    def see(piece: memoryview, at: int) -> None:
        nonlocal crc
        crc = crc32c.crc32c(piece, crc if at else 0)

    stored = bucket.read_into(path, buffer, see)
    if len(stored) != spec.chunk_bytes:
        raise wrong_size(bucket.place(path), len(stored), spec)
    data, trailer = stored[:-CRC_BYTES], int.from_bytes(stored[-CRC_BYTES:], "little")
    if trailer != committed_crc or crc != CRC_RESIDUE:
        raise wrong_bytes(bucket.place(path))
    return np.frombuffer(data, dtype=spec.dtype).reshape(spec.chunk_shape)


def wrong_size(place: str, size: int, spec: ArraySpec) -> CorruptObject:
    return CorruptObject(f"{place} has {size} bytes, not the {spec.chunk_bytes} that were committed")


def wrong_bytes(place: str) -> CorruptObject:
    return CorruptObject(
        f"{place} does not match its checksum in the commit record: delete the shard and its commit record, and harvest again"
    )


def read_manifest(bucket: Bucket, dataset: str) -> DatasetManifest:
    return _read_record(bucket, DatasetLayout(dataset).manifest, DatasetManifest)


def read_commit(bucket: Bucket, dataset: str, shard: int) -> ShardCommit:
    return _read_record(bucket, DatasetLayout(dataset).commit(shard), ShardCommit)


def read_rolling(bucket: Bucket, dataset: str) -> RollingRecord | None:
    """None unless the dataset is in rolling mode."""
    path = DatasetLayout(dataset).rolling
    return _read_record(bucket, path, RollingRecord) if bucket.exists(path) else None


def _read_record(bucket: Bucket, path: str, kind: type[R]) -> R:
    """CorruptObject, naming the first field that does not fit, if the object is not such a record."""
    fields = read_record(bucket, path)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its text"
        raise CorruptObject(f"{bucket.place(path)} is not a record that this version reads: {field}: {first['msg']}") from error


def committed_shards(bucket: Bucket, dataset: str) -> set[int]:
    matches = map(_COMMIT.fullmatch, bucket.names(DatasetLayout(dataset).commits))
    return {int(match[1]) for match in matches if match}


def committed_identity(bucket: Bucket, path: str) -> dict[str, Any]:
    """What was asked for by whoever wrote a manifest or a packing record."""
    try:
        return read_record(bucket, path)["identity"]
    except KeyError as error:
        raise CorruptObject(f"{bucket.place(path)} does not say what it was made from") from error


def refuse_other_identity(place: str, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Conflict, naming the first difference, unless what lies at ``place`` was asked for in the same words."""
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            raise Conflict(
                f"{place} was made with {key} = {stored.get(key)!r}, and this run asks for {wanted.get(key)!r}: "
                "choose another dataset name, or delete the old one"
            )
