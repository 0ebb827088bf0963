"""The command as people run it, in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support import tiny_sweep

COMMAND = [sys.executable, "-m", "scopemill.deploy"]


@pytest.fixture
def folder(tmp_path) -> Path:
    text = tiny_sweep.write_text(tmp_path)
    data = tiny_sweep.sweep(
        str(tmp_path / "bucket"), text, train={"widths": [128], "sparsities": [1e-3], "tokens": 2**22, "checkpoint_every": 5000}
    )
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(data | {"file_sd": str(tmp_path / "targets.json")}))
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def test_help_does_not_wait_for_heavy_imports_and_lists_the_commands(tmp_path):
    start = time.monotonic()
    shown = run(tmp_path, "--help")
    assert shown.returncode == 0 and time.monotonic() - start < 10
    commands = "plan sweep harvest evaluate status clean keys pull convert import templates submit ls monitor demo"
    for command in commands.split():
        assert command in shown.stdout


def test_who_submits_or_mistypes_does_not_wait_for_torch():
    code = "import sys, scopemill.deploy.cluster.jobs, scopemill.deploy.plan.sweep_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_wrong_field_is_one_sentence_on_stderr_and_exit_code_2(folder):
    told = run(folder, "sweep", "sweep.yaml", "--set", "train.bandwith=1")
    assert told.returncode == 2 and not told.stdout
    assert told.stderr == "error sweep.yaml: train.bandwith: there is no such field\n"


def test_a_dry_run_starts_nothing(folder):
    shown = run(folder, "sweep", "sweep.yaml", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "2 SAEs (1 on each stream), 2 of them still to do" in shown.stdout
    assert not list((folder / "bucket").rglob("*"))


def test_a_plan_starts_nothing_and_says_what_each_stage_costs(folder):
    shown = run(folder, "plan", "sweep.yaml", "--hardware", "l4", "--price", "1")
    assert shown.returncode == 0, shown.stderr
    assert "2 SAEs (1 on each stream), 2 of them still to do" in shown.stdout
    assert re.search(r"^train +8,388,608 +\d\.\d\de\+12 ", shown.stdout, re.MULTILINE)
    assert "40% of them reached; US$ 1 an hour" in shown.stdout
    assert not list((folder / "bucket").rglob("*"))


def test_pull_says_what_there_is_when_nothing_matches(folder):
    told = run(folder, "pull", "bucket", "out")
    assert told.returncode == 2 and "nothing in bucket matches '*': it holds no finished SAE" in told.stderr


def test_ctrl_c_ends_within_seconds_keeps_what_is_done_and_says_how_to_continue(folder):
    with subprocess.Popen([*COMMAND, "sweep", "sweep.yaml"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        for line in process.stdout:
            if "training" in line:
                break
        deadline, targets = time.monotonic() + 60, folder / "targets.json"
        while time.monotonic() < deadline and not (targets.exists() and "trainer" in targets.read_text()):
            time.sleep(0.2)
        time.sleep(5)
        # as a terminal does: to every process of the foreground group
        os.killpg(process.pid, signal.SIGINT)
        start = time.monotonic()
        _, told = process.communicate(timeout=100)
    assert time.monotonic() - start < 45
    assert process.returncode == 130
    assert (folder / "targets.json").read_text() == "[]", "nothing that has ended is scraped any more"
    assert re.fullmatch(r"error stopped; everything committed is kept. To continue: scopemill sweep sweep.yaml\n", told)
    status = run(folder, "status", "sweep.yaml")
    assert "shards 3 of 3" in status.stdout and status.stdout.count("started") == 2
