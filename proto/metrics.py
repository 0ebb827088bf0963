"""Every metric that any process of ours exposes, and the one way to expose them.

Labels are bounded: a dataset, a stream, an SAE of the sweep. A process exposes its own on a free port of the address
that it is given; the driver lists these places in a `file_sd` file for Prometheus.
"""

import json
import os
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram, start_http_server

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
SERVER_CONSUMERS = Gauge("scopemill_server_consumers", "Trainers joined to the stream", ["stream"])
SERVER_DETACHED = Counter("scopemill_server_detached", "Times a trainer fell out of the window and read on by itself", ["stream"])
SERVER_LOST = Counter("scopemill_server_lost", "Trainers given up after they went silent", ["stream"])

TRAINER_STEP = Gauge("scopemill_trainer_step", "Steps done", ["sae"])
TRAINER_LOSS = Gauge("scopemill_trainer_loss", "Training loss of the last logged step", ["sae"])
TRAINER_L0 = Gauge("scopemill_trainer_l0", "Active latents per token", ["sae"])
TRAINER_FVU = Gauge("scopemill_trainer_fvu", "Fraction of variance unexplained on the training batches", ["sae"])
TRAINER_DEAD = Gauge("scopemill_trainer_dead_latents", "Latents that have not fired for the stated number of tokens", ["sae"])
TRAINER_STEP_SECONDS = Histogram("scopemill_trainer_step_seconds", "Seconds per step", ["sae"], buckets=[0.003, 0.01, 0.03, 0.1, 0.3, 1, 3])
TRAINER_WAIT_SECONDS = Counter("scopemill_trainer_wait_seconds", "Seconds spent waiting for data", ["sae"])
TRAINER_CHECKPOINT = Gauge("scopemill_trainer_checkpoint_timestamp_seconds", "When the last checkpoint was committed", ["sae"])

EVALUATIONS = Counter("scopemill_evaluations", "Checkpoints evaluated")
EVALUATED_FVU = Gauge("scopemill_evaluated_fvu", "FVU of the newest evaluated checkpoint", ["sae"])
EVALUATED_DELTA_LOSS = Gauge("scopemill_evaluated_delta_loss", "Delta loss of the newest evaluated checkpoint", ["sae"])

SWEEP_SAES = Gauge("scopemill_sweep_saes", "SAEs of the sweep by state", ["state"])


def expose(host: str = "127.0.0.1") -> str:
    """Expose this process' metrics; returns ``host:port``."""
    server, _ = start_http_server(0, addr=host)
    return f"{host}:{server.server_port}"


def write_targets(path: Path, sweep: str, targets: dict[str, list[str]]) -> None:
    """Write Prometheus' `file_sd` file: per role the addresses of its processes. Readers never see half of it."""
    groups = [{"targets": sorted(addresses), "labels": {"role": role, "sweep": sweep}} for role, addresses in sorted(targets.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(groups, indent=1))
    os.replace(temporary, path)
