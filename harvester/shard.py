"""Fill one shard in memory and write it as a committed Zarr group."""

import base64
import math

import numpy as np
import torch
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from scopemill.harvester.dtypes import TORCH_DTYPES
from scopemill.harvester.finite import not_finite
from scopemill.proto.chunks import ArraySpec, block_checksums, chunk_parts
from scopemill.proto.dataset import LOGICAL_DTYPE, ROW_LABELS, DatasetManifest, HookSums, ShardCommit, pack_vector
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.shards import chunk_paths
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record

SUM_VALUES = 2**18  # values summed at once, 2 MiB in float64: this fits a core's cache


class ShardBuffers:
    """Hold one shard in memory, filled in any order.

    The buffers are reused for the next shard, because fresh memory is slow to touch. Place ``rows_per_shard`` is an
    extra row for tokens that are not kept: scattering them there is cheaper than gathering the others.
    """

    def __init__(self, manifest: DatasetManifest):
        self.manifest, self._rows = manifest, manifest.rows_per_shard
        self._dtype, self._scales = TORCH_DTYPES[manifest.dtype], {h.name: h.scale for h in manifest.hooks}
        self._arrays = {spec.name: np.empty((self._rows + 1, *spec.shape[1:]), spec.dtype) for spec in self.manifest.arrays}

    @property
    def nbytes(self) -> int:
        """Return the size of a shard's arrays in bytes."""
        return sum(self.stored(spec).nbytes for spec in self.manifest.arrays)

    def scaled(self, hook: str, rows: torch.Tensor) -> torch.Tensor:
        """Return raw rows [..., d] of a hook as stored, [n, d], on their device.

        Rows are multiplied by 1/C in float32, whatever the model's precision, and rounded once.
        """
        return (rows.flatten(0, -2).float() * (1.0 / self._scales[hook])).to(self._dtype)

    def put(self, places: np.ndarray, array: str, rows: torch.Tensor | np.ndarray) -> None:
        """Scatter ``scaled`` rows [n, d], or labels (n,), into their places (n,)."""
        # numpy's scatter takes a quarter of index_copy_'s time.
        self._arrays[array][places] = _bits(rows.cpu()) if isinstance(rows, torch.Tensor) else rows

    def sums(self, hook: str) -> HookSums:
        """Return float64 sums over a hook's rows as stored.

        Blocks that fit the processor's cache make this eight times faster than one sum over all rows.
        """
        rows = torch.from_numpy(self._arrays[hook][: self._rows]).view(self._dtype)
        total, squares, largest = torch.zeros(rows.shape[1], dtype=torch.float64), 0.0, 0.0
        for block in rows.split(max(1, SUM_VALUES // rows.shape[1])):
            x = block.double()
            squared_norms = torch.linalg.vecdot(x, x)
            total += x.sum(0)
            squares += float(squared_norms.sum())
            largest = max(largest, float(squared_norms.max()))
        return HookSums(count=len(rows), sum_x=pack_vector(total.numpy()), sum_squared_norm=squares, max_norm=largest**0.5)

    def checked_sums(self, shard: int) -> dict[str, HookSums]:
        """Return the sums of every hook.

        Raises NotFinite, naming hook, shard and token, if a row holds a NaN or an infinity.
        """
        sums = {hook.name: self.sums(hook.name) for hook in self.manifest.hooks}
        for hook, of_hook in sums.items():
            if not math.isfinite(of_hook.sum_squared_norm):  # float64, which no finite float32 overflows
                rows = torch.from_numpy(self._arrays[hook][: self._rows]).view(self._dtype)
                wrong = np.flatnonzero(~torch.cat([block.isfinite().all(1) for block in rows.split(2**14)]).numpy())
                token, document, position = (int(self._arrays[label][wrong[0]]) for label in ROW_LABELS)
                raise not_finite(f"shard {shard}", hook, len(wrong), token, document, position)
        return sums

    def stored(self, spec: ArraySpec) -> np.ndarray:
        """Return an array's rows as they go to disk: bfloat16 as its bits in uint16."""
        return self._arrays[spec.name][: self._rows]


def _bits(values: torch.Tensor) -> np.ndarray:
    """Return values as a NumPy array: bfloat16 as its bits in uint16."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def write_shard(bucket: Bucket, shard: int, buffers: ShardBuffers, dropped_outliers: int) -> ShardCommit:
    """Write every object of a shard, its commit record last, and return the record.

    Paths and bytes are a pure function of the plan. So a second writer replaces the objects of a dead one, and of two
    writers at once either may commit. All objects are synced together, before the record that names them. Raises
    NotFinite, and writes nothing, if a row is not finite.
    """
    sums = buffers.checked_sums(shard)
    manifest = buffers.manifest
    layout = DatasetLayout(manifest.dataset)
    metadata = {f"{layout.shard(shard)}/{path}": data for path, data in zarr_metadata(manifest, manifest.arrays).items()}
    for path, data in metadata.items():
        bucket.write(path, data, durable=False)
    checksums: dict[str, list[int]] = {}
    blocks: dict[str, str] = {}
    for spec in manifest.arrays:
        rows = buffers.stored(spec)
        checksums[spec.name] = _write_array(bucket, layout.array(shard, spec.name), spec, rows)
        if spec.width is not None:
            blocks[spec.name] = base64.b64encode(block_checksums(rows, spec)).decode("ascii")
    commit = ShardCommit(
        shard=shard,
        rows=manifest.rows_per_shard,
        dropped_outliers=dropped_outliers,
        sums=sums,
        checksums=checksums,
        blocks=blocks,
    )
    bucket.sync([*metadata, *chunk_paths(manifest, shard)])
    bucket.create(layout.commit(shard), checksummed_record(commit.model_dump(mode="json")))
    return commit


def _write_array(bucket: Bucket, folder: str, spec: ArraySpec, data: np.ndarray) -> list[int]:
    """Write an array's chunk objects and return the checksum of each."""
    checksums = []
    for i in range(spec.chunks):
        crc, parts = chunk_parts(data[i * spec.chunk_rows : (i + 1) * spec.chunk_rows])
        bucket.write(f"{folder}/{spec.chunk_key(i)}", *parts, durable=False)
        checksums.append(crc)
    return checksums


def zarr_metadata(manifest: DatasetManifest, specs: list[ArraySpec]) -> dict[str, bytes]:
    """Return the ``zarr.json`` objects of a shard by path, as zarr itself writes them."""
    store = MemoryStore()
    group = zarr.create_group(store, attributes={"scopemill_format": manifest.format, "model": manifest.model})
    for spec in specs:
        group.create_array(
            spec.name,
            shape=spec.shape,
            chunks=spec.chunk_shape,
            dtype=spec.dtype,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=0,
            attributes={LOGICAL_DTYPE: "bfloat16"} if spec.dtype == np.dtype("<u2") else {},
        )
    return {path: buffer.to_bytes() for path, buffer in store._store_dict.items()}
