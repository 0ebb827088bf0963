"""What a server's memory does over a long stream, and whether it keeps to its budget: ``python tests/bench/memory.py``.

A server in a process of its own hands 100,000 small batches to a trainer, and its resident memory is noted on the way. Then
another fills a window of a given size with large batches, and what it takes is compared with `server.window_mib`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from support.synthetic import make_dataset  # noqa: E402

from scopemill.activation_server.client import StreamClient  # noqa: E402
from scopemill.proto.storage.bucket import Bucket  # noqa: E402
from scopemill.proto.wire import StreamSpec  # noqa: E402

HOOK, MIB = "blocks.0.hook_resid_post", 2**20
SERVER = """
import sys
from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.memory import keep_freed_memory
keep_freed_memory()
server = ActivationServer(Bucket(sys.argv[1]), ServerConfig(window_mib=int(sys.argv[2]), shards_side_by_side=4))
print(server.address, flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def server(bucket: Bucket, window_mib: int) -> Iterator[tuple[str, int]]:
    """Its address and its process id."""
    command = [sys.executable, "-c", SERVER, bucket.url, str(window_mib)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.stdin.close()
        process.wait(30)


def resident(process: int) -> float:
    """MiB of a process in memory, what it shares included."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def long_run(folder: Path, batches: int, notes: list[int]) -> dict[int, float]:
    """Resident MiB of the server after so many batches of 64 rows, d = 64."""
    bucket = Bucket(str(folder / "long"))
    make_dataset(bucket, hooks={HOOK: 64}, shards=4, rows=2**16, dtype="bfloat16")
    told: dict[int, float] = {}
    with server(bucket, 16) as (address, process):
        client = StreamClient(address, StreamSpec("synthetic", (HOOK,), 64, 0, 4), "long", 0, batches)
        for k, _ in client:
            if k + 1 in notes:
                told[k + 1] = resident(process)
        client.close()
    return told


def full_window(folder: Path, window_mib: int) -> tuple[float, float]:
    """Resident MiB of a server before a stream, and the most while its window is full and moves."""
    bucket = Bucket(str(folder / "full"))
    make_dataset(bucket, hooks={HOOK: 1024}, shards=4, rows=2**16, dtype="bfloat16")
    spec, stop = StreamSpec("synthetic", (HOOK,), 1024, 0, 4), 400
    with server(bucket, window_mib) as (address, process):
        before, most = resident(process), 0.0
        client = StreamClient(address, spec, "slow", 0, stop)
        for k, _ in client:
            if k < 20:
                time.sleep(0.2)  # meanwhile the window fills
            most = max(most, resident(process))
        client.close()
    return before, most


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--batches", type=int, default=100_000)
    options.add_argument("--window-mib", type=int, default=256)
    given, console = options.parse_args(), Console()
    notes = sorted({given.batches // 100, given.batches // 10, given.batches // 2, given.batches})
    with tempfile.TemporaryDirectory() as folder:
        told = long_run(Path(folder), given.batches, notes)
        before, most = full_window(Path(folder), given.window_mib)
    table = Table("batches served", "MiB resident")
    for batches, mib in told.items():
        table.add_row(f"{batches:,}", f"{mib:.1f}")
    console.print(table)
    taken = most - before
    console.print(f"window of {given.window_mib} MiB: {taken:.0f} MiB taken, {taken / given.window_mib:.2f} of the budget")


if __name__ == "__main__":
    main()
