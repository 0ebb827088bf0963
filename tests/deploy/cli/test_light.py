"""Commands that read answer at once: they import none of the heavy libraries, and need neither model, corpus nor a writable bucket."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml
from support import tiny_sweep
from support.read_only import read_only as refusing

from scopemill.deploy.catalog.publish import publish
from scopemill.deploy.catalog.published import is_published
from scopemill.deploy.catalog.status import read_status
from scopemill.deploy.demo.run import MODEL
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.record import read_plan, write_plan
from scopemill.deploy.plan.sweep_file import load_sweep, parse_sweep
from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.layout import LeaseLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.proto.storage.heartbeat import Holder
from scopemill.proto.storage.lease import Lease

WEIGHTS = safetensors.numpy.save({"b_dec": np.zeros(2, np.float32)})
HEAVY = {"torch", "transformers", "ray", "matplotlib", "numba", "transformer_lens", "datasets", "zarr"}
# Runs one command as `scopemill` does, and says at the end which of these libraries it has imported.
CODE = """
import atexit, sys
atexit.register(lambda: print("imported", *sorted(set(sys.modules) & {heavy}), file=sys.stderr))
from scopemill.deploy.cli.main import main
sys.argv = ["scopemill", *{arguments}]
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A sweep that was planned with a model and a corpus that are gone now; one of its SAEs is finished."""
    folder = tmp_path_factory.mktemp("light")
    text = tiny_sweep.write_text(folder, documents_wanted=3)
    shutil.copytree(MODEL, folder / "model")
    data = tiny_sweep.sweep(str(folder / "bucket"), text) | {"model": str(folder / "model")}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(data))
    plan = plan_sweep(load_sweep(str(folder / "sweep.yaml")))
    write_plan(plan.bucket, plan.record)
    done = plan.saes[0].layout
    plan.bucket.write(done.config, b"{}")
    plan.bucket.write(done.weights, WEIGHTS)
    plan.bucket.write(plan.saes[1].layout.checkpoint(8).weights, b"1")
    shutil.rmtree(folder / "model")
    text.unlink()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A sweep whose phases are all done and published, and whose model and corpus are gone."""
    folder = tmp_path_factory.mktemp("finished")
    text = tiny_sweep.write_text(folder, documents_wanted=3)
    shutil.copytree(MODEL, folder / "model")
    data = tiny_sweep.sweep(str(folder / "bucket"), text, train={"sparsities": [1e-3]}) | {"model": str(folder / "model")}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(data))
    plan = plan_sweep(load_sweep(str(folder / "sweep.yaml")))
    write_plan(plan.bucket, plan.record)
    dataset = plan.passes[0].harvest.layout
    fields = {"identity": {}, "model": "m", "context_length": 64, "dtype": "float32", "hooks": (), "rows_per_shard": 2048, "shards": 3}
    manifest = DatasetManifest(dataset="tiny", seed=0, calibration_rows=1, **fields).model_dump(mode="json")
    plan.bucket.write(dataset.manifest, checksummed_record(manifest))
    for shard in range(3):
        plan.bucket.write(dataset.commit(shard), b"{}")
    for sae in plan.saes:
        place = sae.layout.checkpoint(24)
        numbers = dict.fromkeys(("sparsity", "l0", "fvu", "dead_fraction", "loss_clean", "loss_spliced", "loss_zero_ablated",
                                 "loss_mean_ablated", "delta_loss", "recovered_zero", "recovered_mean"), 0.5)  # fmt: skip
        result = Result(hook=sae.inputs[0].name, layer=1, site="resid_post", architecture="jumprelu", width=256, step=24, tokens=1,
                        path=place.root, **numbers)  # fmt: skip
        evaluation = Evaluation(result, Histogram([0.0, 1.0], [256], 0), 1, plan.evaluation_settings).to_record()
        for path, data in (
            (sae.layout.config, b"{}"),
            (sae.layout.weights, WEIGHTS),
            (place.record, b"{}"),
            (place.metrics, evaluation),
        ):
            plan.bucket.write(path, data)
    publish(plan)
    assert not plan.work().left()
    shutil.rmtree(folder / "model")
    text.unlink()
    return folder


def run(folder: Path, *arguments: str, read_only: Path | None = None) -> subprocess.CompletedProcess:
    code = (refusing(str(read_only)) if read_only else "") + CODE.format(heavy=HEAVY, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "Exchange"),
        (["ls", "bucket"], "/jumprelu/"),
        (["status", "sweep.yaml"], "24 "),
        (["pull", "bucket", "out"], "out/"),
        (["clean", "sweep.yaml", "--dry-run"], "1 objects would be removed"),
    ],
)
def test_a_command_that_reads_imports_nothing_heavy(folder, arguments, shown):
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert done.stderr.splitlines()[-1] == "imported", "heavy libraries were imported"


def test_a_status_from_the_record_needs_no_write_access(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "bucket").rglob("*")}
    done = run(folder, "status", "sweep.yaml", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert [sae["finished"] for sae in status["saes"]] == [True, False, False, False] and status["shards_wanted"] == 3
    assert {path: path.stat().st_mtime_ns for path in (folder / "bucket").rglob("*")} == before, "not even a probe was written"


def test_a_status_of_a_changed_sweep_file_is_planned_anew(folder):
    done = run(folder, "status", "sweep.yaml", "--set", "train.sparsities=[1e-3]")
    assert done.returncode == 2 and "model" in done.stderr, "the model is gone"


def test_pulled_folders_hold_the_same_bytes(folder):
    assert run(folder, "pull", "bucket", "copy").returncode == 0
    (weights,) = (folder / "copy").rglob("sae_weights.safetensors")
    assert weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["ls", "bucket"], "/jumprelu/"),
        (["status", "sweep.yaml"], "finished"),
        (["pull", "bucket", "out"], "out/"),
        (["clean", "sweep.yaml", "--dry-run"], "0 objects would be removed"),
        (["sweep", "sweep.yaml"], "all is done already"),
        (["evaluate", "sweep.yaml"], "report.html"),
        (["harvest", "sweep.yaml", "--wait"], "harvest is done already"),
    ],
)
def test_a_bucket_that_is_read_only_can_be_read_and_a_finished_sweep_is_shown(finished, arguments, shown):
    """Without model and corpus too: neither is needed where nothing is left to do."""
    done = run(finished, *arguments, read_only=finished / "bucket")
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert done.stderr.splitlines()[-1] == "imported", "heavy libraries were imported"


def test_the_read_only_bucket_of_these_tests_refuses_writes(finished):
    told = run(finished, "clean", "sweep.yaml", read_only=finished / "bucket")
    assert told.returncode == 1 and "Read-only file system" in told.stderr
    told = run(finished, "pull", "bucket", "bucket/out", read_only=finished / "bucket")
    assert told.returncode == 1 and "bucket bucket/out cannot be written" in told.stderr


def test_a_sweep_whose_report_lacks_an_evaluation_is_not_done(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    bucket = str(copy / "bucket")
    data = yaml.safe_load((copy / "sweep.yaml").read_text())
    (copy / "bucket/sweeps/tiny/report.html").unlink()
    config = parse_sweep(data, "sweep.yaml")
    record = read_plan(Bucket(bucket), config)
    assert record is not None and not is_published(Bucket(bucket), "tiny", read_status(Bucket(bucket), record))


def test_clean_is_refused_by_name_while_a_run_is_at_work(folder):
    held = Lease(Bucket(str(folder / "bucket")), LeaseLayout.sweep("tiny"), "it")
    assert held.attempt() is None
    try:
        told = run(folder, "clean", "sweep.yaml")
        assert told.returncode == 1 and f"sweep tiny is in use by {Holder.myself().user} on " in told.stderr
        assert f"(process {os.getpid()}, since " in told.stderr
    finally:
        held.release()
    assert "1 objects were removed" in run(folder, "clean", "sweep.yaml").stdout
