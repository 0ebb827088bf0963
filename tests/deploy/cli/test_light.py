"""Commands that read answer at once: they import none of the heavy libraries, and need neither model, corpus nor a writable bucket."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import tiny_sweep

from scopemill.deploy.demo.run import MODEL
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.record import write_plan
from scopemill.deploy.plan.sweep_file import load_sweep

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
    plan.bucket.write(done.weights, b"weights")
    plan.bucket.write(plan.saes[1].layout.checkpoint(8).weights, b"1")
    shutil.rmtree(folder / "model")
    text.unlink()
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    code = CODE.format(heavy=HEAVY, arguments=list(arguments))
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
    assert weights.read_bytes() == b"weights"
