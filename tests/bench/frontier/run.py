"""The frontier of ours beside that of other packages: ``python tests/bench/frontier/run.py PYTHON [--quick] [--rows FILE]``.

PYTHON is that of an environment with what tests/interop/requirements.txt names. The same rows in the same order go into every
package; the SAEs are judged by `score` on the same held-out rows. Every training is a job in a process of its own, and its result is
kept in build/frontier, so a run that was interrupted resumes, and ``--report`` only reads what is there.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from draw import IMAGES, draw
from jobs import FULL, HERE, OTHER, OURS, PACKAGES, QUICK, ROOT, Job, Plan, Result, merit, others, searches, version_of_ours
from report import summary
from rows import demo_rows, given_rows
from score import Weights, score

WORK = ROOT / "build" / "frontier"


class Runner:
    """Runs jobs, a few at a time, and keeps their results."""

    def __init__(self, python: str, name: str, data: tuple[Path, Path], workers: int):
        self._python, self._workers = python, workers
        self._train, held_out = data
        self._held_out = np.load(held_out)
        self._kept = WORK / name / "jobs"
        self._kept.mkdir(parents=True, exist_ok=True)
        self._data = f"{name} {np.load(self._train, mmap_mode='r').shape} {self._held_out[:64].sum():.9g}"
        self._versions = {OURS: version_of_ours()} | versions(python)

    def path(self, job: Job) -> Path:
        return self._kept / f"{job.key(self._versions[job.package], self._data)}.json"

    def done(self, jobs: Iterable[Job]) -> list[Result]:
        return [Result.from_json(self.path(job).read_text()) for job in dict.fromkeys(jobs) if self.path(job).exists()]

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Those that are not done yet, in their order; the results of all."""
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in dict.fromkeys(jobs):
            if not self.path(job).exists():
                waiting.put(job)
        threads = [threading.Thread(target=self._work, args=(waiting,)) for _ in range(self._workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.done(jobs)

    def _work(self, waiting: "queue.SimpleQueue[Job]") -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                result = self._do(job)
            except subprocess.CalledProcessError as error:
                print(f"{job}: failed\n{error.stderr[-3000:]}", flush=True)
                continue
            print(f"{job}: L0 {result.l0:.1f}, FVU {result.fvu:.4f}, dead {result.dead:.1%}, {result.seconds:.1f} s", flush=True)
            self.path(job).write_text(result.to_json())

    def _do(self, job: Job) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "job.json"
            weights = Path(folder) / "weights.npz"
            told.write_text(json.dumps(job.told() | {"rows": str(self._train), "out": str(weights)}))
            python = sys.executable if job.package == OURS else self._python
            command = [python, str(HERE / PACKAGES[job.package]), str(told)]
            limits = {name: str(job.size.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
            answer = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | limits)
            with np.load(weights) as arrays:
                judged = score(Weights.of(dict(arrays)), self._held_out)
        seconds = json.loads(answer.stdout.splitlines()[-1])
        return Result(job, **asdict(judged), seconds=seconds["processor"], clock_seconds=seconds["clock"])


def versions(python: str) -> dict[str, str]:
    """The peers' versions in the other environment."""
    code = f"from importlib.metadata import version; print(*map(version, {[name for name in PACKAGES if name != OURS]}))"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip([name for name in PACKAGES if name != OURS], told, strict=True))


def best_rates(results: Sequence[Result]):
    """Of a package and an architecture, the learning rate of its best result."""

    def best(package: str, architecture: str) -> float:
        own = [r for r in results if (r.job.package, r.job.architecture) == (package, architecture)]
        return min(own, key=merit).job.learning_rate

    return best


def rows_of(options: argparse.Namespace, plan: Plan, folder: Path) -> tuple[Path, Path]:
    if options.rows:
        return given_rows(options.rows, options.hook, folder, plan.size.rows, plan.size.batch)
    return demo_rows(folder, plan.size.rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train ours and its peers on the same rows, and compare their frontiers.")
    parser.add_argument("python", help="the Python of the peers' environment")
    parser.add_argument("--quick", action="store_true", help="fewer rows and L0s, narrower SAEs, two architectures")
    parser.add_argument("--rows", type=Path, help="rows of another model: .npy, .safetensors, or a dataset's folder; absent: the demo's")
    parser.add_argument("--hook", help="the hook of a dataset's folder, such as blocks.12.hook_resid_post")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="jobs at a time, one thread each")
    parser.add_argument("--report", action="store_true", help="train nothing; report what is there")
    options = parser.parse_args()
    plan = QUICK if options.quick else OTHER if options.rows else FULL
    name = "-".join(filter(None, [options.rows.stem if options.rows else "demo", options.hook, "quick" if options.quick else ""]))
    data = rows_of(options, plan, WORK / name)
    plan = replace(plan, size=replace(plan.size, rows=len(np.load(data[0], mmap_mode="r"))))
    runner = Runner(options.python, name, data, options.workers)
    take = runner.done if options.report else runner.run
    wanted = searches(plan)
    results = take(wanted)
    if len(results) == len(wanted):  # else there is no best learning rate yet
        wanted += others(plan, best_rates(results))
        results = take(wanted)
    summary(name, results)
    draw(name, results, WORK if options.quick else IMAGES)
    if missing := len(set(wanted)) - len(results):
        sys.exit(f"{missing} trainings are missing; what failed stands above, and the same command takes up what is left")


if __name__ == "__main__":
    main()
