"""Hundreds of SAEs through the real driver, and one stream to more and more trainers: ``python tests/bench/many_saes.py``.

What the driver costs for each SAE, what a scrape holds while hundreds are trained, and that the bytes read do not grow with the trainers.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / ".import")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1] / ".import"), os.environ.get("PYTHONPATH", "")])

import numpy as np  # noqa: E402
import ray.actor  # noqa: E402
from prometheus_client import REGISTRY  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from support import tiny_sweep  # noqa: E402
from support.synthetic import make_dataset  # noqa: E402

from scopemill.activation_server.client import StreamClient  # noqa: E402
from scopemill.activation_server.config import ServerConfig  # noqa: E402
from scopemill.activation_server.server import ActivationServer  # noqa: E402
from scopemill.deploy.cluster.ray_cluster import local_cluster  # noqa: E402
from scopemill.deploy.orchestrator.driver import SweepDriver  # noqa: E402
from scopemill.deploy.orchestrator.training import Training  # noqa: E402
from scopemill.proto import metrics  # noqa: E402
from scopemill.proto.storage.bucket import Bucket  # noqa: E402
from scopemill.proto.wire import StreamSpec  # noqa: E402

STEPS, BATCH = 4, 64
SCALING = (1, 2, 4, 8)


@dataclass
class Measured:
    saes: int
    streams: int
    seconds: float = 0.0
    driver_cpu_seconds: float = 0.0
    calls: int = 0
    scraped: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # by role, the most: processes, series, bytes
    bytes_read: float = 0.0
    bytes_served: float = 0.0


class Scrapes:
    """Called by the driver now and then, it scrapes every process as Prometheus would: half way, and when the last SAE has ended."""

    def __init__(self, targets: Path, measured: Measured):
        self._targets, self._measured = targets, measured
        self._due = [measured.saes // 2, measured.saes]

    def __call__(self, training: Collection[str]) -> None:
        finished = REGISTRY.get_sample_value("scopemill_sweep_saes", {"state": "finished"})
        if self._due and (finished or 0) >= self._due[0]:
            self._due.pop(0)
            for group in json.loads(self._targets.read_text()):
                self._scrape(group["labels"]["role"], group["targets"])

    def _scrape(self, role: str, addresses: list[str]) -> None:
        texts = [urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode() for address in addresses]
        ours = [s for t in texts for f in text_string_to_metric_families(t) for s in f.samples if s.name.startswith("scopemill_")]
        now = (len(texts), len(ours), sum(map(len, texts)))
        self._measured.scraped[role] = max(now, self._measured.scraped.get(role, now), key=lambda told: told[1])
        if role == "activation_server":
            self._measured.bytes_read = sum(s.value for s in ours if s.name == "scopemill_server_bytes_read_total")
            self._measured.bytes_served = sum(s.value for s in ours if s.name == "scopemill_server_bytes_served_total")


def many(
    folder: Path, text: Path, harvest: tiny_sweep.Harvests, hooks: int, widths: int, sparsities: int, at_once: int, group: int = 1
) -> Measured:
    """Train hooks x widths x sparsities tiny SAEs in so many processes at once, in the cluster that is there."""
    train = {
        "widths": [16 + i for i in range(widths)], "sparsities": [1e-3 * (i + 1) for i in range(sparsities)], "batch_size": BATCH,
        "tokens": STEPS * BATCH, "checkpoint_every": STEPS, "log_every": 2, "at_once": at_once, "group": group,
        "cpus": 0.1,
    }  # fmt: skip
    data = tiny_sweep.sweep(str(folder / "bucket"), text, harvest={"layers": list(range(hooks))}, train=train)
    plan = tiny_sweep.planned(folder, data | {"file_sd": str(folder / "targets.json")})
    harvest(plan)
    driver = SweepDriver(plan, tiny_sweep.quiet())
    measured = Measured(len(plan.saes), hooks)
    remote = ray.actor.ActorMethod._remote

    def counted(self, *arguments, **options):
        measured.calls += 1
        return remote(self, *arguments, **options)

    metrics.SWEEP_SAES.clear()
    ray.actor.ActorMethod._remote = counted
    began, cpu = time.perf_counter(), time.process_time()
    try:
        (part,) = plan.passes
        training = Training(part, plan.read_state().passes[0], part.saes, driver.targets, tiny_sweep.quiet(), driver.desk)
        training.run(Scrapes(folder / "targets.json", measured))
    finally:
        ray.actor.ActorMethod._remote = remote
    measured.seconds, measured.driver_cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    assert not driver.has_work(["train"])
    return measured


def scaling(folder: Path, trainers: int, batches: int = 256) -> tuple[float, float]:
    """One stream to so many clients, threads of this process: MiB read, and rows per second of all together."""
    bucket, hook = Bucket(str(folder / "scaling")), "blocks.0.hook_resid_post"
    if not bucket.exists("activations/synthetic/dataset.json"):
        make_dataset(bucket, hooks={hook: 768}, shards=4, rows=16_384, dtype="bfloat16")
    spec = StreamSpec("synthetic", (hook,), 1024, 0, 4)
    server = ActivationServer(bucket, ServerConfig(window_mib=64))

    def train(name: str) -> None:
        client = StreamClient(server.address, spec, name, 0, batches)
        for _, (rows,) in client:
            np.copy(rows)
        client.close()

    def read() -> float:
        return REGISTRY.get_sample_value("scopemill_server_bytes_read_total", {"stream": spec.label}) or 0.0

    before, began = read(), time.perf_counter()
    for i in range(trainers):
        server.expect(spec, str(i), 0, batches)
    threads = [threading.Thread(target=train, args=(str(i),)) for i in range(trainers)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    seconds = time.perf_counter() - began
    server.stop()
    return (read() - before) / 2**20, trainers * batches * spec.batch_size / seconds


def table(measured: Measured, at_once: int) -> Table:
    shown = Table(title=f"{measured.saes} SAEs on {measured.streams} streams, in {at_once} processes", title_justify="left")
    shown.add_column("figure")
    shown.add_column("measured")
    n = measured.saes
    rows = {
        "seconds, from the first process to the last": f"{measured.seconds:.0f} ({measured.seconds / n:.2f} an SAE)",
        "the driver's CPU seconds": f"{measured.driver_cpu_seconds:.1f} ({1000 * measured.driver_cpu_seconds / n:.0f} ms an SAE)",
        "calls of actors": f"{measured.calls / measured.seconds:.1f} a second ({measured.calls / n:.1f} an SAE)",
        "bytes served / read": f"{measured.bytes_served / measured.bytes_read:.2f} ({measured.bytes_read / 2**20:.1f} MiB read)",
    }
    for role, (processes, series, size) in sorted(measured.scraped.items()):
        rows[f"a scrape of {role}"] = f"{series} series of ours in {processes} processes, {size / 1024:.0f} KiB with Python's own"
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("hooks", 5), ("widths", 10), ("sparsities", 10), ("at-once", 20), ("group", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    console = Console(width=140)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}, {datetime.date.today()}")
    with tempfile.TemporaryDirectory(prefix="scopemill-many-") as temporary:
        folder = Path(temporary)
        text, harvest = tiny_sweep.write_text(folder), tiny_sweep.Harvests(folder / "harvests")
        with local_cluster(num_cpus=8):
            measured = many(folder, text, harvest, asked.hooks, asked.widths, asked.sparsities, asked.at_once, asked.group)
            console.print(table(measured, asked.at_once))
        told = Table("trainers of one stream", "MiB read", "rows/s in total")
        for trainers in SCALING:
            read, rows = scaling(Path(temporary), trainers)
            told.add_row(str(trainers), f"{read:.1f}", f"{rows:,.0f}")
        console.print(told)


if __name__ == "__main__":
    main()
