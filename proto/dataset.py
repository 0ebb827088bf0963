"""Define the records of an activation dataset: the manifest, the shards' commits, the rolling mark.

A shard is a Zarr v3 group: one array ``(rows, d)`` per hook, and three label arrays ``(rows,)`` that identify each row's
token. `chunks` describes the arrays' objects.
"""

import base64
import re
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from scopemill.proto.chunks import ArraySpec
from scopemill.proto.errors import Conflict, CorruptObject, MissingObject
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record

FORMAT = 3  # format of a dataset: 1 had no block checksums, 2 had blocks of any number of rows
ROW_LABELS: dict[str, np.dtype[Any]] = {"token_id": np.dtype("<i4"), "document": np.dtype("<i8"), "position": np.dtype("<i4")}
# bfloat16 has no Zarr data type: its bits are stored as uint16 under this attribute.
LOGICAL_DTYPE = "logical_dtype"
STORED_DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4")}

_COMMIT = re.compile(r"(\d{5,})\.json")  # file managers leave other files beside the commits
Dtype = Literal["bfloat16", "float32"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


R = TypeVar("R", bound=_Record)


class HookStats(_Record):
    """Describe one hook of a dataset.

    ``scale`` is Gemma Scope's C: stored rows are raw rows / C, so that E||x||^2 = 1.
    """

    name: str
    d: int
    scale: float
    mean: str  # mean of the raw activations over the calibration rows, float64, see `vector`
    norm_limit: float | None  # outlier filter: tokens with a larger raw norm at this hook are dropped

    @property
    def mean_vector(self) -> np.ndarray:
        """Return the mean of the raw activations (d,)."""
        return vector(self.mean)


class DatasetManifest(_Record):
    """Hold ``dataset.json``: the facts that every reader and every writer of the dataset needs."""

    format: int = FORMAT
    dataset: str
    identity: dict[str, Any]  # the user's request: a second harvest into this dataset must have the same
    model: str
    context_length: int
    dtype: Dtype
    hooks: tuple[HookStats, ...]
    rows_per_shard: int
    shards: int
    seed: int
    calibration_rows: int
    text: str | None = None  # SHA-256 of the packed tokens; absent from datasets of earlier versions

    @field_validator("format")
    @classmethod
    def _known(cls, format: int) -> int:
        if format != FORMAT:
            raise ValueError(
                f"this dataset has format {format}, but this version reads format {FORMAT} only: harvest again under another dataset name"
            )
        return format

    def hook(self, name: str) -> HookStats:
        """Return the stats of a hook; raise MissingObject for an unknown name."""
        for hook in self.hooks:
            if hook.name == name:
                return hook
        raise MissingObject(f"dataset {self.dataset!r} holds no hook {name!r}; it holds {', '.join(h.name for h in self.hooks)}")

    @property
    def itemsize(self) -> int:
        """Return the bytes of one stored value."""
        return STORED_DTYPES[self.dtype].itemsize

    def array(self, hook: str) -> ArraySpec:
        """Return the spec of a hook's array in every shard."""
        return ArraySpec.of(hook, self.rows_per_shard, self.hook(hook).d, STORED_DTYPES[self.dtype])

    @property
    def arrays(self) -> list[ArraySpec]:
        """Return the specs of all arrays of a shard: the hooks', then the labels'."""
        return [self.array(hook.name) for hook in self.hooks] + self.label_arrays

    @property
    def label_arrays(self) -> list[ArraySpec]:
        """Return the specs of the three label arrays."""
        return [ArraySpec.of(name, self.rows_per_shard, None, dtype) for name, dtype in ROW_LABELS.items()]


class HookSums(_Record):
    """Hold float64 sums over a shard's stored (scaled) rows at one hook."""

    count: int
    sum_x: str  # vector of length d, see `vector`
    sum_squared_norm: float
    max_norm: float


class ShardCommit(_Record):
    """Hold ``commits/00017.json``, written last and only once: a shard without this record does not exist."""

    shard: int
    rows: int
    dropped_outliers: int
    sums: dict[str, HookSums]
    checksums: dict[str, list[int]]  # per array, the CRC-32C of each chunk
    blocks: dict[str, str]  # per hook, the CRC-32C of each block, chunk after chunk: little-endian uint32 as base64

    def block_checksums(self, spec: ArraySpec, index: int) -> np.ndarray:
        """Return the CRC-32C of each block of chunk ``index``."""
        return np.frombuffer(base64.b64decode(self.blocks[spec.name]), dtype="<u4")[index * spec.blocks : (index + 1) * spec.blocks]


class RollingRecord(_Record):
    """Hold ``rolling.json``: the mark of a dataset that is harvested and deleted while trainers read."""

    low: int  # shards at positions before this one (see `Order.positions`) are deleted, or will be


def pack_vector(x: np.ndarray) -> str:
    """Encode a float64 vector as text without loss."""
    return base64.b64encode(np.ascontiguousarray(x, dtype="<f8").tobytes()).decode("ascii")


def vector(text: str) -> np.ndarray:
    """Decode a vector from the text of ``pack_vector``."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8")


def read_manifest(bucket: Bucket, dataset: str) -> DatasetManifest:
    """Read a dataset's manifest."""
    return _read_record(bucket, DatasetLayout(dataset).manifest, DatasetManifest)


def read_commit(bucket: Bucket, dataset: str, shard: int) -> ShardCommit:
    """Read a shard's commit record; raise MissingObject for an uncommitted shard."""
    return _read_record(bucket, DatasetLayout(dataset).commit(shard), ShardCommit)


def read_rolling(bucket: Bucket, dataset: str) -> RollingRecord | None:
    """Read the rolling mark; return None for a dataset that is not in rolling mode."""
    path = DatasetLayout(dataset).rolling
    return _read_record(bucket, path, RollingRecord) if bucket.exists(path) else None


def _read_record(bucket: Bucket, path: str, kind: type[R]) -> R:
    """Read a record; raise CorruptObject, naming the first wrong field, for another content."""
    fields = read_record(bucket, path)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its text"
        raise CorruptObject(f"{bucket.place(path)} is not a record that this version can read: {field}: {first['msg']}") from error


def committed_shards(bucket: Bucket, dataset: str) -> set[int]:
    """Return the numbers of the committed shards."""
    matches = map(_COMMIT.fullmatch, bucket.names(DatasetLayout(dataset).commits))
    return {int(match[1]) for match in matches if match}


def committed_identity(bucket: Bucket, path: str) -> dict[str, Any]:
    """Return the request that a stored manifest or packing record was made for."""
    try:
        identity: dict[str, Any] = read_record(bucket, path)["identity"]
    except KeyError as error:
        raise CorruptObject(f"{bucket.place(path)} has no field 'identity': restore it, or delete the dataset and harvest again") from error
    return identity


def refuse_other_identity(place: str, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise Conflict, naming the first difference, if the stored and the wanted request differ."""
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            raise Conflict(
                f"{place} was made with {key} = {stored.get(key)!r}, and this run asks for {wanted.get(key)!r}: "
                "choose another dataset name, or delete the old dataset"
            )
