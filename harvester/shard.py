"""One shard in memory, and how it becomes a committed Zarr group in the bucket."""

import base64

import numpy as np
import torch
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from scopemill.harvester.language_model.bridge import DTYPES
from scopemill.proto.chunks import ArraySpec, block_checksums, chunk_parts
from scopemill.proto.dataset import LOGICAL_DTYPE, DatasetManifest, HookSums, ShardCommit, pack_vector
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record

SUM_VALUES = 2**18  # of a block, 2 MiB in float64: fits a core's cache


class ShardBuffers:
    """Memory for one shard, filled in any order and used again for the next: fresh memory is slow to touch.

    Place ``rows_per_shard`` is one row more, for what is not kept: to scatter that away is cheaper than to gather the rest.
    """

    def __init__(self, manifest: DatasetManifest):
        self.manifest, self._rows = manifest, manifest.rows_per_shard
        self._dtype, self._scales = DTYPES[manifest.dtype], {h.name: h.scale for h in manifest.hooks}
        self._arrays = {spec.name: np.empty((self._rows + 1, *spec.shape[1:]), spec.dtype) for spec in self.specs}

    @property
    def specs(self) -> list[ArraySpec]:
        return [self.manifest.array(h.name) for h in self.manifest.hooks] + self.manifest.label_arrays

    @property
    def nbytes(self) -> int:
        return sum(self.stored(spec).nbytes for spec in self.specs)

    def scaled(self, hook: str, rows: torch.Tensor) -> torch.Tensor:
        """Raw rows [..., d] of a hook as they are stored, where they are: times 1/C in float32, whatever the model's precision, and
        rounded once."""
        return (rows.flatten(0, -2).float() * (1.0 / self._scales[hook])).to(self._dtype)

    def put(self, places: np.ndarray, array: str, rows: torch.Tensor | np.ndarray) -> None:
        """Scatter n ``scaled`` rows [n, d] of a hook, or n labels (n,), into their places (n,)."""
        # numpy's scatter takes a quarter of index_copy_'s time.
        self._arrays[array][places] = _bits(rows.cpu()) if isinstance(rows, torch.Tensor) else rows

    def sums(self, hook: str) -> HookSums:
        """Sums over the rows as stored, in float64: by blocks that stay in the processor's cache, eight times faster than at once."""
        rows = torch.from_numpy(self._arrays[hook][: self._rows]).view(self._dtype)
        total, squares, largest = torch.zeros(rows.shape[1], dtype=torch.float64), 0.0, 0.0
        for block in rows.split(max(1, SUM_VALUES // rows.shape[1])):
            x = block.double()
            squared_norms = torch.linalg.vecdot(x, x)
            total += x.sum(0)
            squares += float(squared_norms.sum())
            largest = max(largest, float(squared_norms.max()))
        return HookSums(count=len(rows), sum_x=pack_vector(total.numpy()), sum_squared_norm=squares, max_norm=largest**0.5)

    def stored(self, spec: ArraySpec) -> np.ndarray:
        """An array's rows as they go to disk: bfloat16 as its bits in uint16."""
        return self._arrays[spec.name][: self._rows]


def _bits(values: torch.Tensor) -> np.ndarray:
    """numpy knows no bfloat16: its bits in uint16."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def write_shard(bucket: Bucket, shard: int, buffers: ShardBuffers, dropped_outliers: int) -> ShardCommit:
    """Write every object of a shard, and its commit record last. Returns the record that counts.

    Keys and bytes are a pure function of the plan, so a writer that comes after a dead one replaces what that one
    left, and of two at once it does not matter whose commit wins.
    """
    manifest = buffers.manifest
    layout = DatasetLayout(manifest.dataset)
    for path, data in zarr_metadata(manifest, buffers.specs).items():
        bucket.write(f"{layout.shard(shard)}/{path}", data)
    checksums: dict[str, list[int]] = {}
    blocks: dict[str, str] = {}
    for spec in buffers.specs:
        data = buffers.stored(spec)
        checksums[spec.name] = []
        for i in range(spec.chunks):
            crc, parts = chunk_parts(data[i * spec.chunk_rows : (i + 1) * spec.chunk_rows])
            bucket.write(f"{layout.array(shard, spec.name)}/{spec.chunk_key(i)}", *parts)
            checksums[spec.name].append(crc)
        if spec.width is not None:
            blocks[spec.name] = base64.b64encode(block_checksums(data, spec)).decode("ascii")
    commit = ShardCommit(
        shard=shard,
        rows=manifest.rows_per_shard,
        dropped_outliers=dropped_outliers,
        sums={h.name: buffers.sums(h.name) for h in manifest.hooks},
        checksums=checksums,
        blocks=blocks,
    )
    bucket.create(layout.commit(shard), checksummed_record(commit.model_dump(mode="json")))
    return commit


def zarr_metadata(manifest: DatasetManifest, specs: list[ArraySpec]) -> dict[str, bytes]:
    """The ``zarr.json`` objects of a shard, written by zarr itself."""
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
