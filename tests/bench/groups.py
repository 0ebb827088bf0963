"""Several SAEs in one trainer process, beside one alone."""

import tempfile
import time
from itertools import count
from pathlib import Path
from unittest.mock import patch

import torch
from measure import Figure, alternate

from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer
from scopemill.activation_server.stream_reader import StreamReader
from scopemill.proto.dataset import read_manifest
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.group_trainer import GroupTrainer


def group_over_alone(folder: Path, dataset: str, hook: str, saes: int = 8, steps: int = 32, bytes_per_second: float = 4e6) -> Figure:
    """Seconds of so many SAEs in one group over so many times those of one alone, where data is what both wait for.

    From a bucket that gives so many bytes a second: the reader is slowed down, as by an object store far away.
    """
    bucket, read, names = Bucket(str(folder)), StreamReader.read, count()
    manifest = read_manifest(bucket, dataset)
    spec, results = StreamSpec(dataset, (hook,), 1024, 0, 4), Bucket(tempfile.mkdtemp(dir=folder))
    recipe = {"tokens": steps * spec.batch_size, "batch_size": spec.batch_size, "log_every": steps, "checkpoint_every": steps}
    torch.set_num_threads(1)  # as a trainer has by default

    def slowed(reader: StreamReader, k: int, into: memoryview, stop: int) -> None:
        due = time.perf_counter() + len(into) / bytes_per_second
        read(reader, k, into, stop)
        time.sleep(max(0.0, due - time.perf_counter()))

    def assignment(sparsity: float) -> Assignment:
        config = TrainConfig(template="quick", widths=[256], sparsities=[sparsity], **recipe).saes()[0]
        name = f"sae-{next(names)}"
        return Assignment(name, f"saes/{name}", (manifest.hook(hook),), (), spec, config, "bench", {}, {})

    def train(n: int) -> float:
        server = ActivationServer(bucket, ServerConfig(window_mib=64), 1)
        run, began = GroupTrainer(results, [assignment(1e-3 * (i + 1)) for i in range(n)]), time.perf_counter()
        run.run(server.address)
        server.stop()
        return time.perf_counter() - began

    with patch.object(StreamReader, "read", slowed):
        rounds = alternate({"group": lambda: train(saes), f"one alone, {saes} times": lambda: saes * train(1)}, 3)
    return rounds.figure(f"{saes} SAEs in one group / {saes} times one alone, data-bound", "group", f"one alone, {saes} times", "<= 0.6")
