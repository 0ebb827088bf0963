"""One SAE's training: its stream, its checkpoints, its export. It knows no Ray."""

import importlib.metadata
import json
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scopemill.activation_server.client import StreamClient
from scopemill.proto import metrics, wire
from scopemill.proto.bucket import Bucket
from scopemill.proto.dataset import HookStats
from scopemill.proto.errors import Stopped
from scopemill.proto.layout import SaeLayout
from scopemill.trainer import checkpoint
from scopemill.trainer.architectures import initial_sae
from scopemill.trainer.config import SaeConfig
from scopemill.trainer.formats import FinishedSae, write_saelens
from scopemill.trainer.history import History, Row
from scopemill.trainer.loop import Loop, side_by_side, to_tensor
from scopemill.trainer.sae import Sae
from scopemill.trainer.start import started_from
from scopemill.trainer.wiring import Port, Wiring

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """One SAE to train: which, on what, and where it goes."""

    name: str  # unique in the sweep; names the consumer of the stream and the metrics' label
    root: str  # the SAE's folder in the bucket
    inputs: tuple[HookStats, ...]
    targets: tuple[HookStats, ...]  # empty: it rebuilds what it reads
    stream: wire.StreamSpec
    config: SaeConfig
    model: str
    metadata: dict[str, Any]  # what SAELens' users want to know beside it, such as context_size
    provenance: dict[str, Any]

    @property
    def wiring(self) -> Wiring:
        return Wiring(*(tuple(Port(h.name, h.d, h.scale) for h in side) for side in (self.inputs, self.targets)))


@dataclass(frozen=True)
class Progress:
    """How far a run is: steps done, the last row of its history, and those at the steps that were asked for."""

    name: str  # the assignment's
    step: int
    last: Row | None
    at: dict[int, Row]


class Run:
    """``run`` trains one assignment until the last step or until ``stop``; it begins at the newest checkpoint."""

    def __init__(self, bucket: Bucket, assignment: Assignment, device: torch.device | str = "cpu"):
        self._bucket, self._assignment = bucket, assignment
        self._layout = SaeLayout(assignment.root)
        self._device = torch.device(device)
        self._stop = threading.Event()
        self._loop: Loop | None = None
        self._waited = 0.0  # seconds of waiting that the metric has
        self._saved = 0  # the step of the newest checkpoint

    @property
    def name(self) -> str:
        return self._assignment.name

    def run(self, server: str | Callable[[], str], keys: str | None = None) -> int:
        """Train from the server that is, or is found, there; returns the steps done: all of them, or those before ``stop``."""
        assignment, config = self._assignment, self._assignment.config
        client: StreamClient | None = None
        self._loop = loop = self._begin(lambda: client.waited if client else 0.0)
        self._saved = loop.step_number
        self._announce(loop)
        if loop.done:
            self._finish(loop)
            return loop.step_number
        client = StreamClient(server, assignment.stream, assignment.name, loop.step_number, config.steps, self._stop.is_set, keys)
        try:
            for index, arrays in client:
                loop.skip_to(index)
                with self._timed("copy"):
                    batch = self._batch(arrays, client.dtype)
                with self._timed("step"):
                    loop.step(*batch)
                self._observe(loop, client.waited)
                if loop.step_number // config.checkpoint_every > self._saved // config.checkpoint_every or loop.done:
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
        elif loop.step_number > self._saved:
            self._checkpoint(loop)
        return loop.step_number

    def progress(self, steps: Sequence[int] = ()) -> Progress:
        """Where this run is now; ``steps`` are those whose rows of the history are wanted, once they are there."""
        loop = self._loop
        if loop is None:
            return Progress(self._assignment.name, 0, None, {})
        rows = list(loop.history.rows)
        return Progress(self._assignment.name, loop.step_number, rows[-1] if rows else None, {r.step: r for r in rows if r.step in steps})

    def stop(self) -> None:
        """Checkpoint after the step in work, and return."""
        self._stop.set()

    def _batch(self, arrays: list[np.ndarray], dtype: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream's arrays, one per hook, as x [B, d_in] and y [B, d_out] in the units that the SAE sees."""
        wiring, config = self._assignment.wiring, self._assignment.config
        rows = [to_tensor(array, dtype, self._device) for array in arrays]
        for port, of_hook in zip(wiring.inputs + wiring.targets, rows, strict=True):
            if (factor := port.scale / port.unit(config)) != 1:
                of_hook *= factor
        inputs, targets = rows[: len(wiring.inputs)], rows[len(wiring.inputs) :]
        return side_by_side(inputs), side_by_side(targets) if targets else None

    def _begin(self, waited) -> Loop:
        """A loop at the newest checkpoint, or at the start."""
        config = self._assignment.config
        steps = checkpoint.steps_of(self._bucket, self._layout)
        if not steps:
            return Loop(self._initial().to(self._device), config, History(), waited)
        return checkpoint.load_loop(self._bucket, self._layout, steps[-1], config, self._device, waited)

    def _initial(self) -> Sae:
        assignment, config = self._assignment, self._assignment.config
        wiring = assignment.wiring
        if config.initial_sae:
            return started_from(config, wiring)
        means = [
            torch.from_numpy(stats.mean_vector / port.unit(config)).float()
            for stats, port in zip(assignment.targets or assignment.inputs, wiring.outputs, strict=True)
        ]
        return initial_sae(config, wiring.shape, torch.cat(means))

    def _checkpoint(self, loop: Loop) -> None:
        loop.flush()
        loop.history.save(self._bucket, self._layout.history)
        checkpoint.save(self._bucket, self._layout, self._assignment.wiring, loop)
        self._saved = loop.step_number
        metrics.TRAINER_CHECKPOINT.labels(self._assignment.name).set_to_current_time()

    def _finish(self, loop: Loop) -> None:
        if not self._bucket.exists(self._layout.config):
            wiring, config = self._assignment.wiring, self._assignment.config
            sae = loop.sae.cpu().finished(wiring.input_units(config), wiring.output_units(config))
            provenance = {"scopemill": importlib.metadata.version("scopemill")} | self._assignment.provenance
            self._bucket.write(self._layout.provenance, json.dumps(provenance, indent=1).encode())
            inputs, outputs = (tuple(port.hook for port in ports) for ports in (wiring.inputs, wiring.outputs))
            write_saelens(
                self._bucket, self._layout.root, FinishedSae(sae, inputs, outputs, self._assignment.model, self._assignment.metadata)
            )

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
