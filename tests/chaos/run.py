"""Run the restart matrix: strike each part of a tiny sweep at its worst moments, resume, and compare every bit.

``python tests/chaos/run.py`` prints the matrix and fails unless every row ends as the undisturbed run did; ``--short``
runs the rows that a user meets first, and ``--only PATTERN`` the rows whose names match. No process is searched
for: `inside/sitecustomize.py` makes the process of a row kill itself at a chosen call, and the driver is a child of this
process.
"""

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.rows import Row

HERE = Path(__file__).parent
PHASES = ("harvest", "train", "evaluate", "evidence")
LATER = {"harvest": ("metrics.json", "evidence"), "train": ("metrics.json", "evidence"), "evaluate": ("evidence",), "evidence": ()}
COMMAND = [sys.executable, "-m", "scopemill.deploy", "sweep"]
COMMAND_SECONDS = 900.0  # for one command, on a busy machine


@dataclass
class Outcome:
    """Record how a row ended."""

    row: str
    repeated: int  # times that the command had to be run again: Ray did the rest
    orphans: int  # found and removed by `clean`
    seconds_lost: float
    wrong: list[str] = field(default_factory=list)  # differences from the undisturbed run


class Bench:
    """Hold a folder with the reference run and a folder for each row."""

    def __init__(self, folder: Path, minutes: float):
        from support import tiny_sweep

        self.folder, self.orders = folder, Path(os.environ["SCOPEMILL_CHAOS"])
        self._sweep, self.text = tiny_sweep.sweep, tiny_sweep.write_text(folder)
        self.ends, self.minutes = time.monotonic() + 60 * minutes, minutes  # after which no further row starts
        self.seconds: dict[str, float] = {}  # seconds of the reference run, by phase
        self.batches: dict[tuple[str, int], str] = {}  # digests of the reference run's batches, by SAE and index
        self.command_seconds = 0.0
        self.reference = self.place("reference")

    def place(self, name: str, upto: str = "harvest", **sections: dict) -> Path:
        """Make a sweep file with its own bucket, which starts with the reference's results of the phases before ``upto``."""
        import yaml

        place = self.folder / name
        place.mkdir()
        server = {"window_mib": 1, "join_seconds": 10.0}
        evidence = {"top": 4, "samples": 2, "window": 16, "actors": 2}
        data = self._sweep(str(place / "bucket"), self.text, server=server, evidence=evidence, **sections)
        (place / "sweep.yaml").write_text(yaml.safe_dump(data | {"file_sd": str(place / "targets.json")}))
        for phase, folder in (("train", "activations"), ("evaluate", "saes")):
            if PHASES.index(upto) >= PHASES.index(phase):
                ignored = shutil.ignore_patterns(*LATER[PHASES[PHASES.index(upto) - 1]])
                shutil.copytree(self.reference / "bucket" / folder, place / "bucket" / folder, ignore=ignored)
        for leftover in ("struck", "journal", "order.json"):
            (self.orders / leftover).unlink(missing_ok=True)
        return place

    def order(self, row: "Row", place: Path) -> None:
        (self.orders / "order.json").write_text(json.dumps(asdict(row) | {"bucket": str(place / "bucket")}))

    def struck(self) -> bool:
        return (self.orders / "struck").exists()

    def journal(self) -> list[tuple[str, str, int, str]]:
        lines = (self.orders / "journal").read_text().splitlines() if (self.orders / "journal").exists() else []
        return [(pid, sae, int(k), digest) for pid, sae, k, digest in map(str.split, lines)]


def planned(place: Path):
    from scopemill.deploy.plan.planner import plan_sweep
    from scopemill.deploy.plan.sweep_file import load_sweep

    return plan_sweep(load_sweep(str(place / "sweep.yaml")))


def drive(place: Path, phase: str) -> None:
    """Run a phase as the command does, in the running cluster."""
    from rich.console import Console

    from scopemill.deploy.orchestrator.driver import SweepDriver
    from scopemill.deploy.progress import Reporter

    getattr(SweepDriver(planned(place), Reporter(Console(file=io.StringIO()))), phase)()


def command(place: Path, struck: Callable[[], bool] | None = None) -> int:
    """Run the whole command in its own process, kill it as soon as ``struck`` holds, and return its exit status."""
    with open(place / "output.txt", "a") as output:
        process = subprocess.Popen([*COMMAND, str(place / "sweep.yaml")], stdout=output, stderr=output, cwd=place)
        deadline = time.monotonic() + COMMAND_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if struck and struck():
                break
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
        return process.wait()


def run_row(bench: Bench, number: int, row: "Row") -> Outcome:
    from scopemill.proto.errors import ScopemillError

    if time.monotonic() > bench.ends:
        return Outcome(row.name, 0, 0, 0.0, [f"not started: {bench.minutes:g} minutes have passed"])
    place = bench.place(f"row-{number}", row.phase)
    bench.order(row, place)
    began, repeated = time.monotonic(), 0
    if not row.ends_the_command:
        try:
            drive(place, row.phase)
        except ScopemillError:
            repeated = 1
            drive(place, row.phase)
        lost = time.monotonic() - began - bench.seconds[row.phase]
    else:
        command(place, bench.struck if row.victim == "driver" else None)
        repeated = 1
        status = command(place)
        lost = time.monotonic() - began - bench.command_seconds
        if status:
            return Outcome(row.name, repeated, 0, lost, [f"the repeated command ended with exit status {status}"])
    wrong = [] if bench.struck() else ["nothing was struck"]
    if row.phase == "train":
        wrong += journal_problems(planned(place), bench.journal(), bench.batches)
    from scopemill.deploy.catalog.clean import clean

    plan = planned(place)
    orphans = clean(plan.bucket, plan.record, dry_run=False)
    wrong += [f"still an orphan: {path}" for path in clean(plan.bucket, plan.record, dry_run=True)]
    wrong += differences(bench.reference / "bucket", place / "bucket", () if row.ends_the_command else LATER[row.phase])
    return Outcome(row.name, repeated, len(orphans), max(0.0, lost), wrong)


def run_otherwise(bench: Bench) -> Outcome:
    """Kill no process, but divide the work in another way, which must change no byte."""
    place = bench.place("otherwise", harvest={"actors": 3, "cpus": 0.5, "sequences_per_forward": 32}, train={"at_once": 1})
    for phase in PHASES:
        began = time.monotonic()
        drive(place, phase)
        bench.seconds[phase] = min(bench.seconds[phase], time.monotonic() - began)  # the reference run started with cold processes
    wrong = journal_problems(planned(place), bench.journal(), bench.batches)
    wrong += differences(bench.reference / "bucket", place / "bucket")
    return Outcome("none; three harvesters, one trainer for all SAEs", 0, 0, 0.0, wrong)


def run_undisturbed(bench: Bench, row: Callable) -> Outcome:
    """Run a row in which no process is killed."""
    began = time.monotonic()
    if began > bench.ends:
        return Outcome(row.__name__, 0, 0, 0.0, [f"not started: {bench.minutes:g} minutes have passed"])
    try:
        name, repeated, wrong = row(bench, COMMAND, differences)
    except subprocess.TimeoutExpired as late:
        name, repeated, wrong = row.__name__, 0, [f"{' '.join(map(str, late.cmd[-2:]))} did not end within {late.timeout:.0f} s"]
    return Outcome(name, repeated, 0, max(0.0, time.monotonic() - began - bench.command_seconds), wrong)


def differences(reference: Path, bucket: Path, later: Collection[str] = ()) -> list[str]:
    """Return the objects that are missing, that are extra, or that have other bytes.

    Files and folders of the names ``later`` are not compared. Histories hold seconds, and so differ.
    """

    def objects(root: Path) -> dict[str, Path]:
        files = (path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] in ("activations", "saes"))
        skipped = {"history.parquet", "provenance.json", "live", *later}
        return {path.relative_to(root).as_posix(): path for path in files if skipped.isdisjoint(path.relative_to(root).parts)}

    wanted, got = objects(reference), objects(bucket)
    if not any("saes/" in path for path in got):  # only the harvest ran here
        wanted = {path: file for path, file in wanted.items() if not path.startswith("saes/")}
    listed = [f"missing: {path}" for path in wanted.keys() - got.keys()] + [f"extra: {path}" for path in got.keys() - wanted.keys()]
    same = wanted.keys() & got.keys()
    return sorted(listed + [f"other bytes: {path}" for path in same if wanted[path].read_bytes() != got[path].read_bytes()])


def journal_problems(plan, journal: list[tuple[str, str, int, str]], batches: dict[tuple[str, int], str]) -> list[str]:
    """Check that every life of a trainer starts at a checkpoint's cursor and takes every batch from there, once and in order."""
    lives: dict[tuple[str, str], list[int]] = defaultdict(list)
    wrong = []
    for pid, sae, k, digest in journal:
        lives[sae, pid].append(k)
        if batches[sae, k] != digest:
            wrong.append(f"{sae}: batch {k} had other bytes")
    for sae in plan.saes:
        cursors = {0, *range(0, sae.config.steps, sae.config.checkpoint_every)}
        own = [ks for (name, _), ks in lives.items() if name == sae.name]
        for ks in own:
            if ks[0] not in cursors or ks != list(range(ks[0], ks[0] + len(ks))):
                wrong.append(f"{sae.name}: a trainer took the batches {ks}")
        # The batches of a life that count precede the start of the next life. Together they are every batch, once.
        counted = [k for life, following in zip(own, [*own[1:], [sae.config.steps]], strict=True) for k in life if k < following[0]]
        if counted != list(range(sae.config.steps)):
            wrong.append(f"{sae.name}: the batches that count are {counted}")
    return wrong


def matrix(short: bool, only: str, minutes: float) -> list[Outcome]:
    from chaos import unkilled
    from chaos.rows import ROWS

    from scopemill.deploy.cluster.ray_cluster import local_cluster

    rows = [row for row in ROWS if (row.short or not short) and re.search(only, row.name)]
    undisturbed = [row for row in unkilled.ROWS if not short and re.search(only, row.__name__)]
    with tempfile.TemporaryDirectory(prefix="scopemill-chaos-") as folder:
        os.environ["SCOPEMILL_CHAOS"] = str(Path(folder, "orders"))
        Path(folder, "orders").mkdir()
        bench = Bench(Path(folder), minutes)
        with local_cluster(num_cpus=4):
            for phase in PHASES if not short else ("harvest", "train"):  # no row of the short form strikes an evaluator
                began = time.monotonic()
                drive(bench.reference, phase)
                bench.seconds[phase] = time.monotonic() - began
            bench.batches = {(sae, k): digest for _, sae, k, digest in bench.journal()}
            outcomes = [] if short or only else [shown(run_otherwise(bench))]
            outcomes += [shown(run_row(bench, i, row)) for i, row in enumerate(rows) if not row.ends_the_command]
        if undisturbed or any(row.ends_the_command for row in rows):
            began = time.monotonic()
            command(bench.place("undisturbed", "train"))
            bench.command_seconds = time.monotonic() - began
            outcomes += [shown(run_undisturbed(bench, row)) for row in undisturbed]
        return outcomes + [shown(run_row(bench, 100 + i, row)) for i, row in enumerate(rows) if row.ends_the_command]


def shown(outcome: Outcome) -> Outcome:
    resumed, result = "by the same command" if outcome.repeated else "by itself", "; ".join(outcome.wrong) or "same bits"
    say(f"| {outcome.row} | {resumed} | {outcome.orphans} | {outcome.seconds_lost:.0f} | {result} |")
    return outcome


def say(line: str) -> None:
    print(line, file=sys.__stdout__, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="run only the rows of `make test`")
    parser.add_argument("--only", default="", metavar="PATTERN", help="run only the rows whose names match")
    parser.add_argument("--minutes", type=float, default=20, help="start no row after so many minutes")
    options = parser.parse_args()
    inherited = [str(HERE / "inside"), str(HERE.parents[1] / ".import"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in inherited if path)
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / ".import")]
    say("| killed | resumed | orphans removed | seconds lost | result |\n|---|---|---|---|---|")
    began = time.monotonic()
    with redirect_stdout(io.StringIO()):  # Ray prints a paragraph for every dead worker, and here workers die on purpose
        outcomes = matrix(options.short, options.only, options.minutes)
    say(f"\n{len(outcomes)} rows in {time.monotonic() - began:.0f} s")
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
