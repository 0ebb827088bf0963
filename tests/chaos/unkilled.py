"""The rows of the matrix in which nobody is killed: two drivers, a read-only bucket, a cut connection, another corpus."""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from chaos.rows import CUT

LEASE = "bucket/leases/sweeps/tiny/00001.json"
SECONDS = 900.0  # for one command: it takes some 20 s, and on a machine at a load of 30 some minutes


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


def connection_cut(bench: Any, command: list[str], differences: Any) -> tuple[str, int, list[str]]:
    """The connection between the two processes of a wide SAE is cut: both give up, and the SAE is retried to the same bits."""
    wide = {"train": {"widths": [256], "sparsities": [1e-3], "latents_per_trainer": 150, "at_once": 2, "retries": 1}}
    whole, cut = bench.place("wide", "train", **wide), bench.place("wide-cut", "train", **wide)
    statuses = [_run(whole, [*command, str(whole / "sweep.yaml")]).returncode]
    bench.order(CUT, cut)
    statuses.append(_run(cut, [*command, str(cut / "sweep.yaml")]).returncode)
    wrong = [] if statuses == [0, 0] else [f"the undisturbed and the cut run ended with exit status {statuses}"]
    wrong += [] if bench.struck() else ["nothing was struck"]
    return "none; the connection of a wide SAE is cut", 0, wrong + differences(whole / "bucket", cut / "bucket")


def corpus_replaced(bench: Any, command: list[str], differences: Any) -> tuple[str, int, list[str]]:
    """Activations are lost and made again from another text: no SAE trains on with them. With its own text each ends as ever."""
    place = bench.place("corpus", "train")
    run = [*command, str(place / "sweep.yaml")]
    _begin(place, run)
    own, dataset = bench.text.read_text(), place / "bucket/activations/tiny"
    try:
        bench.text.write_text("".join(f"{line}\n" for line in reversed(own.splitlines())))
        shutil.rmtree(dataset)
        refused = _run(place, run)
    finally:
        bench.text.write_text(own)
    shutil.rmtree(dataset)
    again = _run(place, run)
    wrong = []
    if refused.returncode != 1 or "the checksum of the packed text" not in refused.stdout + refused.stderr:
        wrong.append(f"with another text it ended with exit status {refused.returncode}: {refused.stderr[-200:]}")
    if again.returncode:
        wrong.append(f"with its own text again it ended with exit status {again.returncode}: {again.stderr[-200:]}")
    return "none; the corpus is replaced, and put back", 2, wrong + differences(bench.reference / "bucket", place / "bucket")


def _begin(place: Path, command: list[str]) -> None:
    """Train until each SAE has a checkpoint, and interrupt the run as Ctrl-C does."""
    with open(place / "output.txt", "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=place)
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(place.glob("bucket/saes/**/checkpoint.json"))) >= 4:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.02)
        process.wait(SECONDS)
    for finished in place.glob("bucket/saes/**/cfg.json"):  # the last steps may have been quicker than the signal
        finished.unlink()


def _run(place: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=SECONDS)


def _await(file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


ROWS = (two_drivers, read_only_bucket, connection_cut, corpus_replaced)
