"""Measure what syncing costs a harvest and a checkpoint on this machine's disk.

Run with ``PYTHONPATH=.import:tests python tests/bench/syncing.py FOLDER``: shards and checkpoints are written with and without fsync,
alternated, into a folder of the disk that is to be measured.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector
from scopemill.proto.layout import SaeLayout
from scopemill.proto.shards import remove_shard
from scopemill.proto.storage import local_files
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.wiring import Port, Wiring
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

D, ROWS, WIDTH = 768, 2**16, 2**14
HOOKS = [f"blocks.{layer}.hook_resid_post" for layer in range(2)]


def harvest(bucket: Bucket) -> Callable[[], float]:
    stats = tuple(HookStats(name=h, d=D, scale=1.0, mean=pack_vector(np.zeros(D)), norm_limit=None) for h in HOOKS)
    manifest = DatasetManifest(
        dataset="bench", identity={}, model="none", context_length=8, dtype="bfloat16", hooks=stats, rows_per_shard=ROWS, shards=1, seed=0,
        calibration_rows=1,
    )  # fmt: skip
    buffers = ShardBuffers(manifest)
    for spec in manifest.arrays:
        buffers.stored(spec)[:] = np.random.default_rng(0).integers(0, 2**14, spec.shape).astype(spec.dtype)

    def write() -> None:
        write_shard(bucket, 0, buffers, 0)

    def run() -> float:
        remove_shard(bucket, "bench", 0)
        return seconds(write)

    print(f"a shard of {buffers.nbytes / 2**20:.0f} MiB")
    return run


def training(bucket: Bucket) -> Callable[[], float]:
    config = TrainConfig(template="quick", widths=[WIDTH], sparsities=[1e-3]).saes()[0]
    wiring, layout = Wiring((Port(HOOKS[0], D, 1.0),)), SaeLayout("saes/bench/a/b/c/d")
    loop = Loop(initial_sae(config, wiring.shape, torch.zeros(D)), config, History())

    def save() -> None:
        loop.history.save(bucket, layout.history)
        checkpoint.save(bucket, layout, wiring, loop)

    def run() -> float:
        loop.step_number += 1
        return seconds(save)

    size = sum(t.nbytes for t in (*loop.sae.state_dict().values(), *loop.state().values()))
    print(f"a checkpoint of {size / 2**20:.0f} MiB")
    return run


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=tempfile.gettempdir())
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    synced = local_files._sync
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for make in (harvest, training):
            run, times = make(Bucket(folder)), {True: [], False: []}
            for _ in range(arguments.rounds):
                for syncs in (True, False):
                    os.sync()  # what the run before left to the system is not this run's
                    local_files._sync = synced if syncs else lambda file: None
                    times[syncs].append(run())
            with_, without = (median(times[syncs]) for syncs in (True, False))
            print(f"{make.__name__}: {with_:.3f} s synced, {without:.3f} s not synced, ratio {with_ / without:.2f}", flush=True)


if __name__ == "__main__":
    main()
