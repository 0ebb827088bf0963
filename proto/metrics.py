"""Define every Prometheus metric of Scopemill, and expose the metrics of a process.

Labels are bounded: a dataset, a stream, an SAE of the sweep. Each process exposes its metrics on a free port. The driver
lists the addresses for Prometheus in a `file_sd` file and, if configured, over `http_sd`.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Gauge, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from scopemill.proto.config import LOOPBACK
from scopemill.proto.http_service import Request, Service
from scopemill.proto.runtime import runtime_folder

HARVEST_ROWS = Counter("scopemill_harvest_rows", "Rows harvested; every hook has the same rows", ["dataset"])
HARVEST_SHARDS = Counter("scopemill_harvest_shards", "Shards committed by this harvester", ["dataset"])
HARVEST_BYTES = Counter("scopemill_harvest_bytes", "Bytes of activations written to the bucket", ["dataset"])
HARVEST_OUTLIERS = Counter("scopemill_harvest_outliers", "Rows dropped by the norm filter", ["dataset"])
HARVEST_SECONDS = Counter(
    "scopemill_harvest_seconds", "Seconds by phase: forward (includes the scatter into the shard), write", ["dataset", "phase"]
)

STORE_RETRIES = Counter("scopemill_store_retries", "Retried requests to the bucket", ["verb"])
STORE_CORRUPT_READS = Counter("scopemill_store_corrupt_reads", "Reads that did not match their checksum; each read is retried once")

SERVER_BYTES_READ = Counter("scopemill_server_bytes_read", "Bytes of batches read from the bucket", ["stream"])
SERVER_BYTES_SERVED = Counter("scopemill_server_bytes_served", "Bytes of batches sent to trainers", ["stream"])
SERVER_DETACHED_BYTES = Counter("scopemill_server_detached_bytes", "Bytes read for detached trainers, outside the window", ["stream"])
SERVER_WINDOW_BATCHES = Gauge("scopemill_server_window_batches", "Batches held in the window", ["stream"])
SERVER_WINDOW_CAPACITY = Gauge("scopemill_server_window_capacity", "Capacity of the window in batches", ["stream"])
SERVER_CONSUMERS = Gauge("scopemill_server_consumers", "Trainers connected to the stream", ["stream"])
SERVER_LAG = Gauge(
    "scopemill_server_lag_batches",
    "Batches between a trainer and the foremost trainer of its stream; sae: first SAE of the trainer's group",
    ["stream", "sae"],
)
SERVER_WAIT_SECONDS = Counter(
    "scopemill_server_wait_seconds",
    "Trainer-seconds of waiting by reason: credit (the trainer is busy), read (the bucket), window (a slower trainer)",
    ["stream", "reason"],
)
SERVER_DETACHED = Counter("scopemill_server_detached", "Times a trainer fell behind the window and was detached", ["stream"])
SERVER_SKIPPED = Counter("scopemill_server_skipped", "Batches skipped for trainers that were too slow", ["stream"])
SERVER_LOST = Counter("scopemill_server_lost", "Trainers whose place was given up because they did not connect in time", ["stream"])

TRAINER_STEP = Gauge("scopemill_trainer_step", "Training steps done", ["sae"])
TRAINER_STEPS = Gauge("scopemill_trainer_steps", "Training steps planned", ["sae"])
TRAINER_TOKENS = Counter("scopemill_trainer_tokens", "Rows trained on by this process", ["sae"])
TRAINER_SECONDS = Counter(
    "scopemill_trainer_seconds",
    "Seconds by phase: wait (for data), copy (to the device), step, checkpoint; time that a group shares is divided equally",
    ["sae", "phase"],
)
TRAINER_LOSS = Gauge("scopemill_trainer_loss", "Training loss of the last logged step", ["sae"])
TRAINER_L0 = Gauge("scopemill_trainer_l0", "Active latents per token", ["sae"])
TRAINER_FVU = Gauge("scopemill_trainer_fvu", "Fraction of variance unexplained on the training batches", ["sae"])
TRAINER_DEAD = Gauge("scopemill_trainer_dead_latents", "Latents that have not fired for the stated number of tokens", ["sae"])
TRAINER_LATENTS = Gauge("scopemill_trainer_latents", "Latents of the SAE", ["sae"])
TRAINER_CHECKPOINT = Gauge(
    "scopemill_trainer_checkpoint_timestamp_seconds",
    "Time of the last committed checkpoint; before the first one, start of the training",
    ["sae"],
)
# The metrics of one SAE in a trainer's process, removed together when the process trains another SAE.
OF_TRAINER = (
    TRAINER_STEP, TRAINER_STEPS, TRAINER_TOKENS, TRAINER_SECONDS, TRAINER_LOSS, TRAINER_L0, TRAINER_FVU, TRAINER_DEAD, TRAINER_LATENTS,
    TRAINER_CHECKPOINT,
)  # fmt: skip

FINETUNE_STEP = Gauge("scopemill_finetune_step", "Fine-tuning steps done", ["sae"])
FINETUNE_MSE = Gauge("scopemill_finetune_mse", "Squared error of the last step, where E||x||^2 is 1", ["sae"])
FINETUNE_KL = Gauge("scopemill_finetune_kl", "KL from the clean model's predictions in the last step, in nats per token", ["sae"])

EVALUATIONS = Counter("scopemill_evaluations", "Checkpoints evaluated")
EVALUATED_FVU = Gauge("scopemill_evaluated_fvu", "FVU of the newest evaluated checkpoint", ["sae"])
EVALUATED_DELTA_LOSS = Gauge("scopemill_evaluated_delta_loss", "Delta loss of the newest evaluated checkpoint", ["sae"])

SWEEP_SAES = Gauge("scopemill_sweep_saes", "SAEs of the pass in training, by state", ["state"])


def expose(host: str = LOOPBACK) -> str:
    """Expose this process' metrics on a free port; return ``host:port``."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # would add a second, unused series to each counter
    service = Service((host, 0), _Metrics)
    service.serve()
    return f"{host}:{service.server_port}"


class _Metrics(Request):
    """Answer every path with all metrics, in the form that the client asks for."""

    def do_GET(self) -> None:
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        self.answer(encode(REGISTRY), kind)


@contextmanager
def timed(seconds: Counter) -> Iterator[None]:
    """Add the duration of a block to a counter, in seconds."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds.inc(time.perf_counter() - start)


def listed(sweep: str, targets: dict[str, list[str]]) -> str:
    """Return each role's addresses as JSON, for `file_sd` and `http_sd`."""
    roles = sorted(targets.items())
    return json.dumps([{"targets": sorted(addresses), "labels": {"role": role, "sweep": sweep}} for role, addresses in roles], indent=1)


def targets_folder() -> Path:
    """Return the default folder of the `file_sd` files, one per driver.

    The sweep file can name another place.
    """
    return runtime_folder() / "targets"
