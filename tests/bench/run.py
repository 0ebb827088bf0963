"""The figures of the README, as ratios measured in one run: ``make bench``.

Each pair is alternated and the median of the rounds is taken, because machines drift; nothing here is a test.
"""

import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as parquet
import torch
from prometheus_client import REGISTRY
from rich.console import Console
from rich.table import Table

from scopemill.activation_server.client import StreamClient
from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.reader import StreamReader
from scopemill.activation_server.server import ActivationServer
from scopemill.deploy.demo.run import BUCKET, MODEL
from scopemill.deploy.demo.standard_library import write_corpus
from scopemill.harvester.actor import IN_FLIGHT, Harvester
from scopemill.harvester.config import CorpusConfig, HarvestConfig, ModelConfig
from scopemill.harvester.language_model import describe
from scopemill.harvester.preparation import load_sequences
from scopemill.harvester.task import HarvestTask, identity
from scopemill.proto.bucket import Bucket
from scopemill.proto.dataset import DatasetManifest, read_manifest
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.architectures import initial_sae
from scopemill.trainer.assignment import Assignment
from scopemill.trainer.config import TrainConfig
from scopemill.trainer.history import History
from scopemill.trainer.loop import Loop
from scopemill.trainer.run import Run
from scopemill.trainer.wiring import Shape

ROUNDS = 5
HARVEST_ROUNDS, SHARDS_PER_ROUND = 3, 4  # several shards in a round: the last one's write overlaps nothing
SHARDS = (HARVEST_ROUNDS + 1) * SHARDS_PER_ROUND
THREADS = os.cpu_count() or 1
HOOK = "blocks.5.hook_resid_post"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(one: Callable[[], object], other: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median over rounds of (seconds of ``one`` / seconds of ``other``), in turn, after a warm-up of each."""
    one(), other()
    return statistics.median(seconds(one) / seconds(other) for _ in range(rounds))


def harvester(folder: Path) -> tuple[Harvester, DatasetManifest]:
    """A harvester of 12 hooks of the demo's model (all of the layers are run), prepared but with no shard made."""
    write_corpus(folder / "corpus")
    model = ModelConfig(name=str(MODEL))
    card = describe(model)
    corpus = CorpusConfig(source=str(folder / "corpus" / "train.jsonl"), format="jsonl")
    config = HarvestConfig(
        layers=(1, 3, 5), sites=("resid_pre", "resid_post", "mlp_out", "attn_z"), tokens=SHARDS * 32_768, rows_per_shard=32_768,
        context_length=128, sequences_per_forward=64, calibration_rows=4096, cpus=THREADS,
    )  # fmt: skip
    hooks = card.hooks(config.layers, config.sites)
    same = identity(model, card, corpus, config, hooks, 0)
    made = Harvester(HarvestTask(Bucket(str(folder)), "bench", model, card, corpus, config, tuple(hooks), 0, same, "bench"))
    return made, made.prepare()


def harvest_over_bare_forward(folder: Path) -> float:
    """Tokens/s of the harvest (12 hooks, committed shards) over those of Hugging Face's forward on the same batches."""
    from transformers import AutoModelForCausalLM

    made, manifest = harvester(folder)
    bare = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    shards = iter(range(manifest.shards))
    blocks = [load_sequences(Bucket(str(folder)), DatasetLayout("bench").packed(i)).tokens for i in range(SHARDS_PER_ROUND)]
    batches = [torch.from_numpy(b[i : i + 64]).long() for b in blocks for i in range(0, len(b), 64)]

    def harvest() -> None:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(made.harvest, islice(shards, SHARDS_PER_ROUND)))

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                bare(batch, use_cache=False)

    return 1 / ratio(harvest, forward, HARVEST_ROUNDS)


def reader_over_raw_files(folder: Path) -> float:
    """Bytes/s of the server's reader, checksums and batch assembly included, over reading the same files whole."""
    bucket = Bucket(str(folder))
    manifest = read_manifest(bucket, "bench")
    files = sorted((folder / DatasetLayout("bench").root / "shards").glob(f"*.zarr/{HOOK}/c/*/*"))
    spec = StreamSpec("bench", (HOOK,), 4096, 0, 4)
    # As much reused memory as the reader has: a chunk in use and one ahead for each shard of a group.
    buffers = [bytearray(max(f.stat().st_size for f in files)) for _ in range(2 * spec.shards_side_by_side)]

    reader = StreamReader(bucket, manifest, spec)  # one for all rounds, as in the server: its memory is reused
    slot, batches, stop = memoryview(bytearray(reader.batch_bytes)), count(), 2**62

    def through_reader() -> None:
        for _ in range(reader.batches_per_epoch):
            reader.read(next(batches), slot, stop)

    def raw() -> None:
        for i, file in enumerate(files):
            with open(file, "rb", buffering=0) as f:
                f.readinto(buffers[i % len(buffers)])

    return 1 / ratio(through_reader, raw, rounds=9)


def served_over_read(folder: Path, trainers: int = 4) -> float:
    """Bytes served to trainers over bytes read from the bucket, of one epoch, from the server's own counters."""
    bucket, spec = Bucket(str(folder)), StreamSpec("bench", (HOOK,), 2048, 0, 4)
    server = ActivationServer(bucket, ServerConfig(window_mib=64), 1)
    batches = StreamReader(bucket, read_manifest(bucket, "bench"), spec).batches_per_epoch

    def train(name: str) -> None:
        client = StreamClient(server.address, spec, name, 0, batches)
        for _ in client:
            pass
        client.close()

    for i in range(trainers):
        server.expect(spec, str(i), 0, batches)
    threads = [threading.Thread(target=train, args=(str(i),)) for i in range(trainers)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    counters = {n: REGISTRY.get_sample_value(f"scopemill_server_bytes_{n}_total", {"stream": spec.label}) for n in ("served", "read")}
    server.stop()
    return counters["served"] / counters["read"]


LOCAL_TRAINER = """
import sys
import numpy as np
from scopemill.activation_server import client
from scopemill.proto.wire import StreamSpec
address, name, way, first, batches, size, hooks = *sys.argv[1:7], sys.argv[7:]
if way == "socket":
    client.this_host = lambda: ""
mine = {}
def take(arrays):  # what a trainer does with them: one copy, into memory that it has
    for i, array in enumerate(arrays):
        np.copyto(mine.setdefault(i, np.empty_like(array)), array)
stream = client.StreamClient(address, StreamSpec("bench", tuple(hooks), int(size), 0, 4), name, 0, int(batches), take=take)
for k, _ in stream:
    if k == int(first):
        print(flush=True)
        sys.stdin.readline()
print(flush=True)
stream.close()
"""


def ring_over_socket(folder: Path, trainers: int = 4, first: int = 48, batches: int = 160) -> float:
    """Bytes/s that trainers in processes of their own get from the server of their host: shared memory over TCP."""
    bucket = Bucket(str(folder))
    hooks = tuple(hook.name for hook in read_manifest(bucket, "bench").hooks[:4])
    spec = StreamSpec("bench", hooks, 4096, 0, 4)

    def serve(way: str) -> float:
        server = ActivationServer(bucket, ServerConfig(window_mib=64), 1)
        command = [sys.executable, "-c", LOCAL_TRAINER, server.address]
        processes = []
        for i in range(trainers):
            server.expect(spec, str(i), 0, batches)
            arguments = [*command, str(i), way, str(first), str(batches), str(spec.batch_size), *hooks]
            processes.append(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        [process.stdout.readline() for process in processes]

        def go() -> None:
            for process in processes:
                process.stdin.write("\n")
                process.stdin.flush()
            [process.stdout.readline() for process in processes]

        took = seconds(go)
        [process.communicate() for process in processes]
        server.stop()
        return took

    return statistics.median(serve("socket") / serve("ring") for _ in range(ROUNDS))


def group_over_alone(folder: Path, saes: int = 8, steps: int = 32, bytes_per_second: float = 4e6) -> tuple[float, float]:
    """Seconds of so many SAEs in one group over so many times those of one alone, and the share of its time that the one waits.

    From a bucket that gives so many bytes a second: the reader is slowed down, as by an object store far away.
    """
    bucket, read = Bucket(str(folder)), StreamReader.read
    manifest = read_manifest(bucket, "bench")
    spec, results, names = StreamSpec("bench", (HOOK,), 1024, 0, 4), Bucket(tempfile.mkdtemp(dir=folder)), count()
    recipe = {"tokens": steps * spec.batch_size, "batch_size": spec.batch_size, "log_every": steps, "checkpoint_every": steps}
    torch.set_num_threads(1)  # as a trainer has by default

    def slowed(reader: StreamReader, k: int, into: memoryview, stop: int) -> None:
        due = time.perf_counter() + len(into) / bytes_per_second
        read(reader, k, into, stop)
        time.sleep(max(0.0, due - time.perf_counter()))

    def assignment(sparsity: float) -> Assignment:
        config = TrainConfig(template="quick", widths=[256], sparsities=[sparsity], **recipe).saes()[0]
        name = f"sae-{next(names)}"
        return Assignment(name, f"saes/{name}", (manifest.hook(HOOK),), (), spec, config, "bench", {}, {})

    def train(n: int) -> float:
        server = ActivationServer(bucket, ServerConfig(window_mib=64), 1)
        run = Run(results, [assignment(1e-3 * (i + 1)) for i in range(n)])
        took = seconds(lambda: run.run(server.address))
        server.stop()
        waits.append(run.progress()[0].last.waiting_share)
        return took

    waits: list[float] = []
    train(1)  # compiles what is compiled
    waits.clear()
    with patch.object(StreamReader, "read", slowed):
        ratios = [train(saes) / (saes * train(1)) for _ in range(HARVEST_ROUNDS)]
    return statistics.median(ratios), statistics.median(waits[1::2])


def step_over_encoder(architecture: str, sparsity: float) -> float:
    """Seconds of a training step over those of its one dense product that nothing can avoid, x W_enc^T.

    On white noise, with thresholds at which about 50 of 8192 latents fire, or with k of them kept.
    """
    batch, d, width = 2048, 512, 8192
    torch.set_num_threads(THREADS)
    recipe = {"architecture": architecture, "tokens": batch * 1000, "batch_size": batch, "log_every": 1000}
    config = TrainConfig(template="gemma-scope", widths=[width], sparsities=[sparsity], **recipe).saes()[0]
    loop = Loop(initial_sae(config, Shape.square(d), torch.zeros(d)), config, History())
    if architecture == "jumprelu":
        torch.nn.init.constant_(loop.sae.activation.threshold, 2.5 * d**-0.5)
    x = torch.randn(batch, d) / d**0.5
    weights, product = loop.sae.W_enc.detach().clone(), torch.empty(batch, width)
    return ratio(lambda: loop.step(x), lambda: torch.mm(x, weights.T, out=product), rounds=9)


def demo_figures() -> dict[str, str]:
    """From the demo's table: the best SAE with L0 of at most 64 at each residual hook."""
    place = BUCKET / "sweeps" / "demo" / "results.parquet"
    if not place.exists():
        return {"recovered_zero of the demo": "run make demo first"}
    figures = {}
    for row in parquet.read_table(place).to_pylist():
        if row["site"].startswith("resid") and row["l0"] <= 64:
            name = f"demo, {row['hook']}: best recovered_zero at L0 <= 64"
            figures[name] = max(figures.get(name, ""), f"{row['recovered_zero']:.3f} (L0 {row['l0']:.0f}, FVU {row['fvu']:.3f})")
    return figures


def main() -> None:
    table = Table(title=f"{platform.machine()}, {THREADS} cores, torch {torch.__version__}, {datetime.date.today()}", title_justify="left")
    table.add_column("figure")
    table.add_column("measured")
    table.add_column("wanted")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table.add_row("harvest, 12 hooks, shards on disk / bare forward", f"{harvest_over_bare_forward(folder):.2f}", ">= 0.95")
        table.add_row("server's reader / raw files", f"{reader_over_raw_files(folder):.2f}", ">= 0.9")
        table.add_row("bytes served / bytes read, 4 trainers", f"{served_over_read(folder):.4f}", "4.0")
        table.add_row("4 trainers of the server's host, shared memory / TCP", f"{ring_over_socket(folder):.1f}", ">= 3")
        ratio_of_group, waits = group_over_alone(folder)
        table.add_row(f"8 SAEs in one group / 8 times one alone, which waits {waits:.0%} of its time", f"{ratio_of_group:.2f}", "<= 0.6")
    for architecture, sparsity, wanted in (("jumprelu", 1e-3, "<= 1.3"), ("topk", 64, "<= 1.4"), ("batchtopk", 64, "<= 1.4")):
        table.add_row(
            f"{architecture} step / encoder product (2048, 512, 8192)", f"{step_over_encoder(architecture, sparsity):.2f}", wanted
        )
    for name, value in demo_figures().items():
        table.add_row(name, value, ">= 0.90")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
