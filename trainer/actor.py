"""One trainer: an SAE, its stream, its checkpoints."""

import logging
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ray
import torch

from scopemill.activation_server.client import StreamClient
from scopemill.proto import metrics, wire
from scopemill.proto.bucket import Bucket
from scopemill.proto.dataset import HookStats
from scopemill.proto.errors import Stopped
from scopemill.proto.layout import SaeLayout
from scopemill.proto.memory import keep_freed_memory
from scopemill.trainer import checkpoint
from scopemill.trainer.architectures import ARCHITECTURES
from scopemill.trainer.config import SaeConfig
from scopemill.trainer.export import write_sae
from scopemill.trainer.history import History
from scopemill.trainer.loop import Loop, to_tensor
from scopemill.trainer.sae import Sae

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """One SAE to train: which, on what, and where it goes."""

    name: str  # unique in the sweep; names the consumer of the stream and the metrics' label
    root: str  # the SAE's folder in the bucket
    hook: HookStats
    stream: wire.StreamSpec
    config: SaeConfig
    metadata: dict[str, Any]  # model_name, hook_name, context_size for SAELens
    provenance: dict[str, Any]


class Trainer:
    """``run`` trains until the last step or until ``stop``; it begins at the newest checkpoint."""

    def __init__(self, bucket_url: str, assignment: Assignment, threads: int, gpu: bool):
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._bucket, self._assignment = Bucket(bucket_url), assignment
        self._layout = SaeLayout(assignment.root)
        self._device = torch.device("cuda" if gpu else "cpu")
        self._stop = threading.Event()
        self._loop: Loop | None = None
        self._waited = 0.0  # seconds of waiting that the metric has
        self._metrics_address = metrics.expose()

    def metrics_address(self) -> str:
        return self._metrics_address

    def run(self, server: str) -> int:
        """Train from the server at an address; returns the steps done: all of them, or those before ``stop``."""
        assignment, config = self._assignment, self._assignment.config
        client: StreamClient | None = None
        self._loop = loop = self._begin(lambda: client.waited if client else 0.0)
        self._announce(loop)
        if loop.done:
            self._finish(loop)
            return loop.step_number
        client = StreamClient(server, assignment.stream, assignment.name, loop.step_number, config.steps, self._stop.is_set)
        try:
            for _, (rows,) in client:
                with self._timed("copy"):
                    batch = to_tensor(rows, client.dtype, self._device)
                with self._timed("step"):
                    loop.step(batch)
                self._observe(loop, client.waited)
                if loop.step_number % config.checkpoint_every == 0 or loop.done:
                    with self._timed("checkpoint"):
                        self._checkpoint(loop)
                if self._stop.is_set():
                    break
        except Stopped:
            pass
        finally:
            client.close()
        if loop.done:
            self._finish(loop)
        elif loop.step_number % config.checkpoint_every:
            self._checkpoint(loop)
        return loop.step_number

    def progress(self) -> dict[str, float]:
        """Steps done, and the last row of the history."""
        loop = self._loop
        if loop is None:
            return {"step": 0}
        return (vars(loop.history.rows[-1]) if loop.history.rows else {}) | {"step": loop.step_number}

    def stop(self) -> None:
        """Checkpoint after the step in work, and return."""
        self._stop.set()

    def _begin(self, waited) -> Loop:
        """A loop at the newest checkpoint, or at the start."""
        config, hook = self._assignment.config, self._assignment.hook
        steps = checkpoint.steps_of(self._bucket, self._layout)
        if not steps:
            mean = torch.from_numpy(hook.mean_vector / hook.scale).float()
            sae = ARCHITECTURES[config.architecture].initial(config, hook.d, mean)
            return Loop(sae.to(self._device), config, History(), waited)
        sae, record, moments, tokens_since_fired = checkpoint.load_state(self._bucket, self._layout, steps[-1], config)
        loop = Loop(sae.to(self._device), config, History.load(self._bucket, self._layout.history, record.step), waited)
        loop.restore(record.step, moments, tokens_since_fired)
        return loop

    def _checkpoint(self, loop: Loop) -> None:
        loop.flush()
        step, config, hook = loop.step_number, self._assignment.config, self._assignment.hook
        record = checkpoint.CheckpointRecord(
            step, step, step * config.batch_size, hook.name, hook.scale, config.model_dump(mode="json")
        )  # fmt: skip
        loop.history.save(self._bucket, self._layout.history)
        checkpoint.save(self._bucket, self._layout, record, loop.sae, loop.optimizer.second_moments, loop.tokens_since_fired)
        metrics.TRAINER_CHECKPOINT.labels(self._assignment.name).set_to_current_time()

    def _finish(self, loop: Loop) -> None:
        if not self._bucket.exists(self._layout.config):
            sae: Sae = loop.sae.cpu().folded(self._assignment.hook.scale)
            write_sae(self._bucket, self._layout, sae, self._assignment.metadata, self._assignment.provenance)

    def _timed(self, phase: str) -> AbstractContextManager[None]:
        return metrics.timed(metrics.TRAINER_SECONDS.labels(self._assignment.name, phase))

    def _announce(self, loop: Loop) -> None:
        """What the metrics can tell before the first step. Counters begin at 0, so that no rate misses the first increase."""
        name = self._assignment.name
        metrics.TRAINER_STEP.labels(name).set(loop.step_number)
        metrics.TRAINER_STEPS.labels(name).set(self._assignment.config.steps)
        metrics.TRAINER_LATENTS.labels(name).set(loop.sae.width)
        metrics.TRAINER_CHECKPOINT.labels(name).set_to_current_time()
        metrics.TRAINER_TOKENS.labels(name)
        for phase in ("wait", "copy", "step", "checkpoint"):
            metrics.TRAINER_SECONDS.labels(name, phase)

    def _observe(self, loop: Loop, waited: float) -> None:
        name = self._assignment.name
        metrics.TRAINER_STEP.labels(name).set(loop.step_number)
        metrics.TRAINER_TOKENS.labels(name).inc(self._assignment.config.batch_size)
        metrics.TRAINER_SECONDS.labels(name, "wait").inc(waited - self._waited)
        self._waited = waited
        if loop.history.rows and loop.history.rows[-1].step == loop.step_number:
            row = loop.history.rows[-1]
            for gauge, value in (
                (metrics.TRAINER_LOSS, row.loss),
                (metrics.TRAINER_L0, row.l0),
                (metrics.TRAINER_FVU, row.fvu),
                (metrics.TRAINER_DEAD, row.dead_latents),
            ):
                gauge.labels(name).set(value)


# One thread trains; the others answer questions and take the word to stop. If the process dies, Ray starts another and
# calls ``run`` again, which goes on at the newest checkpoint.
TrainerActor = ray.remote(max_concurrency=3, max_restarts=3, max_task_retries=3)(Trainer)
