"""The rows of the matrix in which nobody is killed: two drivers at once, and a bucket that is read-only."""

import subprocess
import time
from pathlib import Path
from typing import Any

LEASE = "bucket/leases/sweeps/tiny/00001.json"
SECONDS = 120.0  # for one command


def two_drivers(bench: Any, command: list[str], differences: Any) -> tuple[str, int, list[str]]:
    """A second run is refused by name, a third waits, and both find the work of the first one whole."""
    place = bench.place("two-drivers", "train")
    with open(place / "output.txt", "w") as output:
        first = subprocess.Popen([*command, str(place / "sweep.yaml")], stdout=output, stderr=output, cwd=place)
        try:
            _await(place / LEASE, first)
            second = _run(place, [*command, str(place / "sweep.yaml")])
            third = _run(place, [*command, str(place / "sweep.yaml"), "--wait"])
            status = first.wait(SECONDS)
        finally:
            first.kill()
    wrong = [] if status == 0 else [f"the first run ended with exit status {status}"]
    if second.returncode != 1 or "sweep tiny is in use by" not in second.stderr or f"(process {first.pid}, since" not in second.stderr:
        wrong.append(f"the second run ended with exit status {second.returncode}: {second.stderr[-200:]}")
    if third.returncode:
        wrong.append(f"the run that waited ended with exit status {third.returncode}: {third.stderr[-200:]}")
    return "none; two drivers at once, and a third that waits", 0, wrong + differences(bench.reference / "bucket", place / "bucket")


def read_only_bucket(bench: Any, command: list[str], differences: Any) -> tuple[str, int, list[str]]:
    """With work left a read-only bucket is refused at once. Written again, the sweep ends as ever and then needs no write."""
    from support.read_only import command_on_read_only

    place = bench.place("read-only", "train")
    refused = command_on_read_only(str(place / "bucket"), "sweep", str(place / "sweep.yaml"))
    first, second, third = _run(place, refused), _run(place, [*command, str(place / "sweep.yaml")]), _run(place, refused)
    wrong = []
    if first.returncode != 1 or "cannot be written" not in first.stderr:
        wrong.append(f"on the read-only bucket it ended with exit status {first.returncode}: {first.stderr[-200:]}")
    if second.returncode:
        wrong.append(f"on the bucket that could be written again it ended with exit status {second.returncode}: {second.stderr[-200:]}")
    if third.returncode or "all is done already" not in third.stdout:
        wrong.append(f"finished and read-only again, it ended with exit status {third.returncode}: {third.stderr[-200:]}")
    return "none; the bucket is read-only, before and after", 1, wrong + differences(bench.reference / "bucket", place / "bucket")


def _run(place: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=SECONDS)


def _await(file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


ROWS = (two_drivers, read_only_bucket)
