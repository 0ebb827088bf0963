"""From the command to the first training step on a cluster that is up, with shards that are there: ``python tests/bench/first_step.py``.

Where the seconds go is told by what every process exposes: when it was started, and when it was listed.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / ".import")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1] / ".import"), os.environ.get("PYTHONPATH", "")])

import yaml  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from support import tiny_sweep  # noqa: E402
from support.ray_head import ray_head  # noqa: E402

PHASES = (
    "the command: its imports, the sweep checked, the code sent",
    "Ray starts the driver",
    "driver: its imports, the sweep checked, Ray joined",
    "the trainer is up",
    "the server is up",
    "the stream joined, the first step taken",
)


class Watch:
    """Notes when the driver was started, when each process of the sweep was listed, and when the trainer has taken a step."""

    def __init__(self, targets: Path):
        self._targets = targets
        self.listed: dict[str, float] = {}
        self.began = 0.0  # the driver

    def look(self) -> bool:
        """Whether a step has been taken."""
        groups = json.loads(self._targets.read_text()) if self._targets.exists() else []
        for role, address in ((group["labels"]["role"], group["targets"][0]) for group in groups):
            self.listed.setdefault(role, time.time())
            if role == "driver" and not self.began:
                self.began = scraped(address)["process_start_time_seconds"]
            if role == "trainer" and scraped(address).get("scopemill_trainer_tokens_total", 0) > 0:
                return True
        return False


def scraped(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return {s.name: s.value for family in text_string_to_metric_families(answer.read().decode()) for s in family.samples}


def command(head: tuple[str, dict[str, str]], file: Path) -> dict[str, Any]:
    """That submits a sweep and follows it to its end."""
    address, environment = head
    return {
        "args": [sys.executable, "-m", "scopemill.deploy", "submit", str(file), "--address", address],
        "env": environment,
        "stderr": subprocess.DEVNULL,
    }


def submitted(head: tuple[str, dict[str, str]], file: Path) -> list[float]:
    """Seconds of each of the phases."""
    watch, began = Watch(file.with_name("targets.json")), time.time()
    with subprocess.Popen(**command(head, file), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("submitted")
        sent = time.time()
        while not watch.look():
            assert process.poll() is None, "the sweep ended before its first step was seen"
            time.sleep(0.02)
        ended = time.time()
        process.communicate()
    times = [began, sent, watch.began, *(watch.listed[role] for role in ("driver", "trainer", "activation_server")), ended]
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def write_sweep(folder: Path, name: str, sparsity: float) -> Path:
    """One SAE of two thousand steps; sweeps of other names have the same shards."""
    sections = {"harvest": {"layers": [3], "dataset": "shared"}, "evaluation": {"checkpoints": "last"}}
    train = {"sparsities": [sparsity], "tokens": 256 * 2000, "checkpoint_every": 2000}
    data = tiny_sweep.sweep(str(folder / "bucket"), tiny_sweep.write_text(folder), train=train, **sections)
    (folder / name).mkdir()
    (folder / name / "sweep.yaml").write_text(yaml.safe_dump(data | {"name": name, "file_sd": str(folder / name / "targets.json")}))
    return folder / name / "sweep.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    console = Console(width=140)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}, {datetime.date.today()}")
    with tempfile.TemporaryDirectory(prefix="scopemill-first-") as temporary, ray_head() as head:
        first, *others = (write_sweep(Path(temporary), f"round-{i}", 1e-3 * (i + 1)) for i in range(rounds + 1))
        # It harvests, and leaves files in the system's cache and the code on the nodes.
        subprocess.run(**command(head, first), check=True, stdout=subprocess.DEVNULL)
        told = [submitted(head, file) for file in others]
    table = Table("phase", "seconds", *[f"round {i + 1}" for i in range(rounds)], title=f"medians of {rounds} rounds", title_justify="left")
    for phase, of_rounds in zip((*PHASES, "all"), [*zip(*told, strict=True), tuple(map(sum, told))], strict=True):
        table.add_row(phase, f"{statistics.median(of_rounds):.1f}", *[f"{seconds:.1f}" for seconds in of_rounds])
    console.print(table)


if __name__ == "__main__":
    main()
