"""Make activation datasets without a language model; each row says where it came from."""

import numpy as np
import torch

from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record


def make_dataset(
    bucket: Bucket,
    name: str = "synthetic",
    hooks: dict[str, int] | None = None,
    shards: int = 4,
    rows: int = 64,
    dtype: str = "float32",
    seed: int = 0,
) -> DatasetManifest:
    """Commit a dataset of random rows with scale 1. Label ``document`` is the shard, ``position`` the row in it.

    In float32, column 0 of every hook is shard * rows + row, so a batch tells exactly which rows it holds.
    """
    hooks = hooks or {"blocks.0.hook_resid_post": 8}
    manifest = DatasetManifest(
        dataset=name, identity={"made by": "a test"}, model="synthetic", context_length=8, dtype=dtype,
        hooks=tuple(HookStats(name=h, d=d, scale=1.0, mean=pack_vector(np.zeros(d)), norm_limit=None) for h, d in hooks.items()),
        rows_per_shard=rows, shards=shards, seed=seed, calibration_rows=rows,
    )  # fmt: skip
    bucket.create(DatasetLayout(name).manifest, checksummed_record(manifest.model_dump(mode="json")))
    generator = torch.Generator().manual_seed(seed)
    for shard in range(shards):
        buffers = ShardBuffers(manifest)
        numbers = torch.arange(rows) + shard * rows
        values = {}
        for h, d in hooks.items():
            values[h] = torch.randn(rows, d, generator=generator)
            if dtype == "float32":
                values[h][:, 0] = numbers
        labels = {"token_id": np.full(rows, 3, np.int32), "document": np.full(rows, shard), "position": np.arange(rows, dtype=np.int32)}
        fill(buffers, np.arange(rows), values, labels)
        write_shard(bucket, shard, buffers, dropped_outliers=0)
    return manifest


def fill(buffers: ShardBuffers, places: np.ndarray, rows: dict[str, torch.Tensor], labels: dict[str, np.ndarray]) -> None:
    """Put raw rows [n, d] of some hooks, and labels (n,), into their places (n,) of a shard."""
    for hook, x in rows.items():
        buffers.put(places, hook, buffers.scaled(hook, x))
    for name, label in labels.items():
        buffers.put(places, name, label)
