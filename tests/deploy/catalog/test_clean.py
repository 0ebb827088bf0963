"""Orphans: each kind is found, and nothing that counts is touched."""

import pytest
import yaml
from support import tiny_sweep

from scopemill.deploy.catalog.clean import clean
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import load_sweep
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.storage.checksums import checksummed_record

KEPT = [
    "activations/tiny/dataset.json",
    "activations/tiny/packing.json",
    "activations/tiny/packed/00000.safetensors",
    "activations/tiny/shards/00000.zarr/zarr.json",
    "activations/tiny/shards/00000.zarr/blocks.1.hook_resid_post/c/0/0",
    "activations/tiny/commits/00000.json",
    "activations/another/shards/00000.zarr/zarr.json",
    "sweeps/tiny/report.html",
    "SAE/history.parquet",
    "SAE/checkpoints/00000008/weights.safetensors",
    "SAE/checkpoints/00000008/checkpoint.json",
    "SAE/checkpoints/00000012/weights.safetensors",
    "SAE/checkpoints/00000012/optimizer.safetensors",
    "SAE/checkpoints/00000012/checkpoint.json",
    "SAE/checkpoints/00000016/weights.safetensors",
    "SAE/checkpoints/00000016/optimizer.safetensors",
    "SAE/checkpoints/00000016/checkpoint.json",
    "SAE/evidence/0001/evidence.json",
    "SAE/evidence/0001/examples.arrow",
    "SAE/evidence/0001/labels/mine.parquet",
    "SAE/evidence/0002/labels/mine.parquet",
    "SAE/evidence/0002/work/parts/00000-ab.json",
    "SAE/evidence/0002/work/ledgers/00000-ab/00000000.safetensors",
    "SAE/evidence/0002/work/ledgers/00000-ab/sample.safetensors",
    "saes/another/checkpoints/00000008/weights.safetensors",
]
ORPHANS = [
    "activations/tiny/commits/.tmp-0123",
    "activations/tiny/shards/00000.zarr/blocks.1.hook_resid_post/c/0/.tmp-4567",
    "activations/tiny/shards/00002.zarr/zarr.json",
    "activations/tiny/shards/00002.zarr/blocks.1.hook_resid_post/c/0/0",
    "activations/tiny/shards/100000.zarr/zarr.json",
    "sweeps/tiny/.tmp-89ab",
    "SAE/checkpoints/00000008/optimizer.safetensors",
    "SAE/checkpoints/00000024/weights.safetensors",
    "SAE/checkpoints/00000024/optimizer.safetensors",
    "SAE/evidence/0001/work/parts/00000-ab.json",
    "SAE/evidence/0001/work/ledgers/00000-ab/sample.safetensors",
    "SAE/evidence/0002/examples.arrow",
    "SAE/evidence/0002/work/ledgers/00000-abcd/sample.safetensors",
]


@pytest.fixture
def plan(tmp_path) -> SweepPlan:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(tiny_sweep.sweep(str(tmp_path / "bucket"), tiny_sweep.write_text(tmp_path))))
    return plan_sweep(load_sweep(str(file)))


def manifest() -> bytes:
    """Of a dataset without a hook: the state of a sweep reads it, and what is in it does not matter here."""
    fields = {"identity": {}, "model": "m", "context_length": 64, "dtype": "float32", "hooks": (), "rows_per_shard": 2048, "shards": 3}
    return checksummed_record(DatasetManifest(dataset="tiny", seed=0, calibration_rows=1, **fields).model_dump(mode="json"))


def test_orphans_of_every_kind_are_removed_and_nothing_else(plan):
    kept, orphaned = ([path.replace("SAE", plan.saes[1].layout.root) for path in paths] for paths in (KEPT, ORPHANS))
    everything = sorted(kept + orphaned)
    for path in everything:
        plan.bucket.write(path, b"1" if path != "activations/tiny/dataset.json" else manifest())
    assert clean(plan.bucket, plan.record, dry_run=True) == sorted(orphaned)
    assert all(plan.bucket.exists(path) for path in everything)
    assert clean(plan.bucket, plan.record, dry_run=False) == sorted(orphaned)
    assert [path for path in everything if plan.bucket.exists(path)] == sorted(kept)
    assert clean(plan.bucket, plan.record, dry_run=False) == []


def test_a_sweep_that_was_never_begun_has_no_orphans(plan):
    assert clean(plan.bucket, plan.record, dry_run=False) == []
