"""Every metric that any process of ours exposes, and the one way to expose them.

Labels are bounded: a dataset, a stream, an SAE of the sweep. A process exposes its own on a free port of the address
that it is given; the driver lists these places for Prometheus, in a `file_sd` file and, where asked to, by `http_sd`.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import Counter, Gauge, disable_created_metrics, start_http_server

from scopemill.proto.config import LOOPBACK

# Where this machine's drivers put their `file_sd` files, a file each, unless the sweep file names another place.
TARGETS = Path(tempfile.gettempdir()) / "scopemill" / "targets"

HARVEST_ROWS = Counter("scopemill_harvest_rows", "Rows harvested, per hook the same", ["dataset"])
HARVEST_SHARDS = Counter("scopemill_harvest_shards", "Shards committed by this harvester", ["dataset"])
HARVEST_BYTES = Counter("scopemill_harvest_bytes", "Bytes of activations written to the bucket", ["dataset"])
HARVEST_OUTLIERS = Counter("scopemill_harvest_outliers", "Rows dropped by the norm filter", ["dataset"])
HARVEST_SECONDS = Counter("scopemill_harvest_seconds", "Seconds by phase: forward (with scatter), write", ["dataset", "phase"])

STORE_RETRIES = Counter("scopemill_store_retries", "Requests to the bucket that were tried again", ["verb"])
STORE_CORRUPT_READS = Counter("scopemill_store_corrupt_reads", "Chunks read that did not match their checksum; each is read twice at most")

SERVER_BYTES_READ = Counter("scopemill_server_bytes_read", "Bytes of batches read from the bucket", ["stream"])
SERVER_BYTES_SERVED = Counter("scopemill_server_bytes_served", "Bytes of batches sent to trainers", ["stream"])
SERVER_DETACHED_BYTES = Counter("scopemill_server_detached_bytes", "Bytes read for single trainers outside the window", ["stream"])
SERVER_WINDOW_BATCHES = Gauge("scopemill_server_window_batches", "Batches held in the window", ["stream"])
SERVER_WINDOW_CAPACITY = Gauge("scopemill_server_window_capacity", "Batches that the window has memory for", ["stream"])
SERVER_CONSUMERS = Gauge("scopemill_server_consumers", "Trainers joined to the stream", ["stream"])
SERVER_LAG = Gauge(
    "scopemill_server_lag_batches",
    "Batches by which a trainer is behind the foremost one of its stream; sae: the first that it trains",
    ["stream", "sae"],
)
SERVER_WAIT_SECONDS = Counter(
    "scopemill_server_wait_seconds",
    "Trainer-seconds by what the next batch waits for: credit (the trainer is busy), read (the bucket), window (a slower trainer)",
    ["stream", "reason"],
)
SERVER_DETACHED = Counter("scopemill_server_detached", "Times a trainer fell out of the window and read on by itself", ["stream"])
SERVER_SKIPPED = Counter("scopemill_server_skipped", "Batches that trainers lost because they were too slow", ["stream"])
SERVER_LOST = Counter("scopemill_server_lost", "Trainers given up after they went silent", ["stream"])

TRAINER_STEP = Gauge("scopemill_trainer_step", "Steps done", ["sae"])
TRAINER_STEPS = Gauge("scopemill_trainer_steps", "Steps in all", ["sae"])
TRAINER_TOKENS = Counter("scopemill_trainer_tokens", "Rows trained on by this process", ["sae"])
TRAINER_SECONDS = Counter(
    "scopemill_trainer_seconds",
    "Seconds by phase: wait (for data), copy (to the device), step, checkpoint; of what a group shares, an equal part",
    ["sae", "phase"],
)
TRAINER_LOSS = Gauge("scopemill_trainer_loss", "Training loss of the last logged step", ["sae"])
TRAINER_L0 = Gauge("scopemill_trainer_l0", "Active latents per token", ["sae"])
TRAINER_FVU = Gauge("scopemill_trainer_fvu", "Fraction of variance unexplained on the training batches", ["sae"])
TRAINER_DEAD = Gauge("scopemill_trainer_dead_latents", "Latents that have not fired for the stated number of tokens", ["sae"])
TRAINER_LATENTS = Gauge("scopemill_trainer_latents", "Latents of the SAE", ["sae"])
TRAINER_CHECKPOINT = Gauge(
    "scopemill_trainer_checkpoint_timestamp_seconds", "When the last checkpoint was committed; before that, when training began", ["sae"]
)
# All of one SAE in the process that trains it: removed together once that process trains another.
OF_TRAINER = (
    TRAINER_STEP, TRAINER_STEPS, TRAINER_TOKENS, TRAINER_SECONDS, TRAINER_LOSS, TRAINER_L0, TRAINER_FVU, TRAINER_DEAD, TRAINER_LATENTS,
    TRAINER_CHECKPOINT,
)  # fmt: skip

EVALUATIONS = Counter("scopemill_evaluations", "Checkpoints evaluated")
EVALUATED_FVU = Gauge("scopemill_evaluated_fvu", "FVU of the newest evaluated checkpoint", ["sae"])
EVALUATED_DELTA_LOSS = Gauge("scopemill_evaluated_delta_loss", "Delta loss of the newest evaluated checkpoint", ["sae"])

SWEEP_SAES = Gauge("scopemill_sweep_saes", "SAEs of the pass in training, by state", ["state"])


def expose(host: str = LOOPBACK) -> str:
    """Expose this process' metrics; returns ``host:port``."""
    disable_created_metrics()  # a second series for each counter, which nobody asks for
    server, _ = start_http_server(0, addr=host)
    return f"{host}:{server.server_port}"


@contextmanager
def timed(seconds: Counter) -> Iterator[None]:
    """Add the seconds that a block takes to a counter."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds.inc(time.perf_counter() - start)


def listed(sweep: str, targets: dict[str, list[str]]) -> str:
    """What Prometheus' `file_sd` and `http_sd` take: per role the addresses of its processes."""
    roles = sorted(targets.items())
    return json.dumps([{"targets": sorted(addresses), "labels": {"role": role, "sweep": sweep}} for role, addresses in roles], indent=1)


def write_targets(path: Path, text: str) -> None:
    """Write Prometheus' `file_sd` file. Readers never see half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
