"""Train one SAE of a group: loop, checkpoints, export and outcome.

Nothing here knows the stream. If the SAE is sharded, this process is rank 0 and leads the other ranks: see `follower`.
"""

import importlib.metadata
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from scopemill.proto import metrics
from scopemill.proto.errors import ScopemillError
from scopemill.proto.finished import is_finished
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import FinishedSae, write_saelens
from scopemill.trainer.parallel.shards import Command, LatentShard
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import all_latents
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History, Row
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.training.monitors import sweep_monitors
from scopemill.trainer.worker.assignment import Assignment, Batch
from scopemill.trainer.worker.initialization import new_sae

log = logging.getLogger(__name__)
Outcome = int | ScopemillError  # the number of steps done, up to the last step or until the SAE left; or the error


@dataclass(frozen=True)
class Progress:
    """Describe how far an SAE is: steps, last history row, and requested rows."""

    name: str  # of the assignment
    step: int
    last: Row | None
    at: dict[int, Row]
    outcome: Outcome | None  # None while the SAE trains
    warnings: tuple[str, ...] = ()  # of damaged files that were passed over


class SaeTrainer:
    """Train one SAE: call ``begin``, ``take`` for each batch, then ``end``.

    An exception in any of these becomes this SAE's ``outcome`` and leaves the other SAEs of the group alone.
    """

    def __init__(
        self, bucket: Bucket, assignment: Assignment, device: torch.device, waited: Callable[[], float], shard: LatentShard | None = None
    ):
        self.name, self.steps, self.view = assignment.name, assignment.config.steps, assignment.view
        self.outcome: Outcome | None = None
        self._bucket, self._assignment = bucket, assignment
        self._layout = SaeLayout(assignment.root)
        self._device, self._waited = device, waited
        self._shard = shard or LatentShard(all_latents(assignment.config, assignment.wiring.shape))
        self._leaving = threading.Event()
        self._loop: Loop | None = None
        self._saved = 0  # the step of the newest checkpoint
        self._warnings: list[str] = []

    @property
    def step(self) -> int:
        """Return the number of the next batch to train on."""
        return self._loop.step_number if self._loop else 0

    @property
    def done(self) -> bool:
        """Return whether this SAE takes no further batch."""
        return self.outcome is not None or self._leaving.is_set() or self.step >= self.steps

    def leave(self) -> None:
        """Take no further batch."""
        self._leaving.set()

    def begin(self) -> None:
        """Resume from the newest checkpoint, or start.

        A checkpoint of the last step ends training at once.
        """
        with self._errors_as_outcome():
            self._loop = loop = self._resume_or_start()
            self._saved = loop.step_number
            self._initialize_metrics(loop)
            if loop.done:
                self.end()
                return
            loop.monitors = sweep_monitors(self._assignment.monitors, self._bucket, self._layout, loop.config.model_dump(mode="json"))
            loop.monitors.begin(loop.history.rows)

    def take(self, index: int, batch: Batch) -> None:
        """Train on batch ``index`` of the stream.

        Batches between the previous one and this were lost.
        """
        with self._errors_as_outcome():
            loop, every = self._started_loop(), self._assignment.config.checkpoint_every
            loop.skip_to(min(index, self.steps))
            if loop.done:  # the last batches of this SAE were lost, and the stream continues for others
                return
            with self._timed("step"):
                self._shard.send_command(Command.STEP, index)
                x, y = batch
                loop.step(self._shard.broadcast(x), None if y is None else self._shard.broadcast(y))
            self._observe(loop)
            if loop.step_number // every > self._saved // every and not loop.done:
                self._checkpoint(loop)

    def end(self) -> None:
        """End training: write a missing checkpoint, and after the last step export the SAE."""
        with self._errors_as_outcome():
            loop = self._started_loop()
            if loop.step_number > self._saved:
                self._checkpoint(loop)
            self._shard.send_command(Command.END)
            loop.monitors.on_end()
            if loop.done:
                self._export(loop)
            self.outcome = loop.step_number

    def fail(self, error: Exception) -> None:
        """End training with an error as the outcome."""
        if not isinstance(error, ScopemillError):
            log.error("Training of SAE %s failed", self.name, exc_info=error)
            error = ScopemillError(" ".join(f"{type(error).__name__}: {error}".split()))
        if self._loop:
            self._loop.monitors.on_end()
        self.outcome = error

    def count_seconds(self, phase: str, seconds: float) -> None:
        """Add seconds of a phase to this SAE's metric."""
        metrics.TRAINER_SECONDS.labels(self.name, phase).inc(seconds)

    def progress(self, steps: Sequence[int] = ()) -> Progress:
        """Return the progress, with existing history rows at ``steps``."""
        outcome = self.outcome  # read first, so that a reported outcome never comes with an older step
        rows = list(self._loop.history.rows) if self._loop else []
        at = {row.step: row for row in rows if row.step in steps}
        return Progress(self.name, self.step, rows[-1] if rows else None, at, outcome, tuple(self._warnings))

    @contextmanager
    def _errors_as_outcome(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.fail(error)

    def _started_loop(self) -> Loop:
        assert self._loop is not None, "call begin first"
        return self._loop

    def _resume_or_start(self) -> Loop:
        assignment, config = self._assignment, self._assignment.config
        step = checkpoint.newest_whole(self._bucket, self._layout, self._warn)
        self._shard.send_command(Command.START, step)
        if not step:
            return Loop(new_sae(assignment, self._shard).to(self._device), config, History(), self._waited)
        history = History.load(self._bucket, self._layout.history, step, self._warn)
        trained_on = checkpoint.Data(assignment.wiring, assignment.text)
        return checkpoint.load_loop(self._bucket, self._layout, step, config, trained_on, history, self._device, self._waited, self._shard)

    def _warn(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self._warnings.append(sentence)

    def _checkpoint(self, loop: Loop) -> None:
        with self._timed("checkpoint"):
            loop.check_finite()
            self._shard.send_command(Command.SAVE)
            loop.flush()
            loop.history.save(self._bucket, self._layout.history)
            checkpoint.save(self._bucket, self._layout, self._assignment.wiring, loop, self._assignment.text)
        self._saved = loop.step_number
        metrics.TRAINER_CHECKPOINT.labels(self.name).set_to_current_time()

    def _export(self, loop: Loop) -> None:
        if not is_finished(self._bucket, self._layout):
            wiring, config = self._assignment.wiring, self._assignment.config
            sae = fold(self._whole(loop), wiring.input_units(config), wiring.output_units(config))
            provenance = {"scopemill": importlib.metadata.version("scopemill")} | self._assignment.provenance
            inputs, outputs = (tuple(port.hook for port in ports) for ports in (wiring.inputs, wiring.outputs))
            sae.with_cfg(sae.describe(inputs, outputs[: len(wiring.targets)], self._assignment.model, self._assignment.metadata))
            finished = FinishedSae(sae, inputs, outputs, self._assignment.model, self._assignment.metadata)
            write_saelens(self._bucket, self._layout, finished, provenance)

    def _whole(self, loop: Loop) -> Sae:
        """Return the unsharded SAE on the CPU. The other ranks have ended, so a sharded SAE is read from its last checkpoint."""
        return loop.sae.cpu() if self._shard.whole else checkpoint.load_sae(self._bucket, self._layout, loop.step_number)[0]

    def _timed(self, phase: str) -> AbstractContextManager[None]:
        return metrics.timed(metrics.TRAINER_SECONDS.labels(self.name, phase))

    def _initialize_metrics(self, loop: Loop) -> None:
        """Set the metrics that are known before the first step. Counters start at 0, so that a rate includes the first increase."""
        metrics.TRAINER_STEP.labels(self.name).set(loop.step_number)
        metrics.TRAINER_STEPS.labels(self.name).set(self.steps)
        metrics.TRAINER_LATENTS.labels(self.name).set(self._shard.width)
        metrics.TRAINER_CHECKPOINT.labels(self.name).set_to_current_time()
        metrics.TRAINER_TOKENS.labels(self.name)
        for phase in ("wait", "copy", "step", "checkpoint"):
            metrics.TRAINER_SECONDS.labels(self.name, phase)

    def _observe(self, loop: Loop) -> None:
        metrics.TRAINER_STEP.labels(self.name).set(loop.step_number)
        metrics.TRAINER_TOKENS.labels(self.name).inc(self._assignment.config.batch_size)
        if loop.history.rows and loop.history.rows[-1].step == loop.step_number:
            row = loop.history.rows[-1]
            for gauge, value in (
                (metrics.TRAINER_LOSS, row.loss),
                (metrics.TRAINER_L0, row.l0),
                (metrics.TRAINER_FVU, row.fvu),
                (metrics.TRAINER_DEAD, row.dead_latents),
            ):
                gauge.labels(self.name).set(value)
