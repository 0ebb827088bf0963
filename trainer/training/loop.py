"""Train one SAE, or one rank's shard of its latents, batch by batch.

Needs no Ray.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.calibration import calibrate
from scopemill.trainer.sae.objective import Losses
from scopemill.trainer.sae.registry import objective_for
from scopemill.trainer.sparse.gradients import SparseGradients
from scopemill.trainer.sparse.kernels.base import moments
from scopemill.trainer.sparse.kernels.select import backend_for
from scopemill.trainer.training.finite import check_state, check_step
from scopemill.trainer.training.history import History, Row
from scopemill.trainer.training.monitors import Monitors
from scopemill.trainer.training.optimizer import Optimizer
from scopemill.trainer.training.resampling import due, resample
from scopemill.trainer.training.schedules import learning_rate, sparsity_factor

# Steps are sparse below the first density (the share of places [row, latent] with an active latent) and dense above the second;
# between the two a step is what the step before was (hysteresis).
SPARSE_BELOW, DENSE_ABOVE = 0.03, 0.05


class Loop:
    """Train an SAE on one batch per `step`.

    State: the SAE, the optimiser, and for each latent the tokens since it fired.
    """

    def __init__(self, sae: Sae, config: SaeConfig, history: History, waited: Callable[[], float] = lambda: 0.0):
        self.sae, self.config, self.history = sae, config, history
        self.monitors = Monitors()  # receive each row of the history as it is made
        self.objective, self.optimizer = objective_for(sae, config), Optimizer(sae, config)
        self.tokens_since_fired = torch.zeros(sae.width, dtype=torch.int64, device=sae.b_dec.device)
        self.step_number = 0  # the next batch of the stream; each batch before was a step or was skipped
        self.skipped = 0
        self.sparse = False  # whether the next step tries sparse numerics first
        self._backend = backend_for(sae.b_dec)  # None where every step is dense
        self._waited = waited  # seconds spent waiting for data so far
        self._interval = _Interval(sae.shape.d_out, waited())

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint needs beside the SAE and the number of steps.

        With it a resumed run gives the same bits.
        """
        return {
            **{f"first_moment.{name}": m for name, m in self.optimizer.first_moments.items()},
            **{f"second_moment.{name}": v for name, v in self.optimizer.second_moments.items()},
            **{f"updated.{name}": updates for name, updates in self.optimizer.updated.items()},
            "tokens_since_fired": self.tokens_since_fired,
            "sparse": torch.tensor(self.sparse),
            "skipped": torch.tensor(self.skipped),
        }

    def restore(self, step: int, state: dict[str, torch.Tensor]) -> None:
        """Resume after batch ``step``, with the ``state`` of that moment."""
        self.step_number, self.skipped = step, int(state["skipped"])
        self.optimizer.updates = step - self.skipped
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.sparse = bool(state["sparse"])

    @property
    def done(self) -> bool:
        """Return whether all steps are done."""
        return self.step_number >= self.config.steps

    @property
    def tokens(self) -> int:
        """Return the number of rows trained on."""
        return (self.step_number - self.skipped) * self.config.batch_size

    @property
    def dead(self) -> torch.Tensor:
        """Return a mask [F] of the latents that have not fired for long."""
        return self.tokens_since_fired >= self.config.dead_after_tokens

    def skip_to(self, step: int) -> None:
        """Count the batches before ``step`` as lost.

        Schedules go by the stream, so lost batches do not delay the end.
        """
        self.skipped += step - self.step_number
        self.step_number = step

    def step(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Train on one batch x [B, d_in] with targets y [B, d_out].

        Without targets (None), the targets are x. Raises NotFinite, with the weights of the step before, if the loss is not finite.
        """
        config, alone, y = self.config, y is None, x if y is None else y
        if self._backend:
            self._backend.begin_step()
        if self.optimizer.updates == 0:
            calibrate(self.sae, config, x, y)
        coefficient = config.coefficient * sparsity_factor(config, self.step_number)
        fired = torch.zeros_like(self.tokens_since_fired, dtype=torch.bool)
        gradients = SparseGradients()
        parts = list(zip(x.chunk(config.accumulate), y.chunk(config.accumulate), strict=True))
        for x_part, y_part in parts:
            max_entries = int(DENSE_ABOVE * len(x_part) * self.sae.shard.width) if self.sparse else 0
            with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses = self.objective.losses(x_part, y_part, self.dead, max_entries, gradients)
            density = losses.l0.item() / self.sae.shard.width
            self.sparse = self._backend is not None and density < (DENSE_ABOVE if max_entries else SPARSE_BELOW)
            total = losses.total(coefficient)
            loss = total.item()
            check_step(config, self.step_number + 1, loss, x_part, None if alone else y_part)
            (total / len(parts)).backward()
            fired |= losses.codes.frequency.detach() > 0
            self._interval.add(losses, loss)
        self.optimizer.update(learning_rate(config, self.step_number), gradients)
        self.tokens_since_fired += len(x)
        self.tokens_since_fired[fired] = 0
        self.step_number += 1
        if due(config, self.step_number):
            dead = self.dead
            resample(self.sae, self.optimizer, x, dead, config, self.step_number)
            self.tokens_since_fired[dead] = 0
        self._interval.steps += 1
        if self.step_number % config.log_every == 0 or self.done:
            self.flush()

    def check_finite(self) -> None:
        """Raise NotFinite if the weights or the optimizer's state must not be kept."""
        check_state(self.config, self.step_number, self.sae.state_dict() | self.state())

    def flush(self) -> None:
        """Add the row of the steps since the last row to the history."""
        if not self._interval.steps:
            return
        last = self.step_number - 1
        factor = sparsity_factor(self.config, last)
        row = self._interval.row(
            step=self.step_number,
            tokens=self.tokens,
            dead_latents=self.sae.shard.total(int(self.dead.sum())),
            learning_rate=learning_rate(self.config, last),
            sparsity_coefficient=self.config.coefficient,
            sparsity_factor=factor,
            waited=self._waited(),
        )
        self.history.rows.append(row)
        self.monitors.on_row(row)
        self._interval = _Interval(self.sae.shape.d_out, self._waited())


class _Interval:
    """Sum up the steps of one row of the history; sums for the variance are in float64."""

    def __init__(self, d: int, waited: float):
        self.steps = self.rows = 0
        self.loss = self.sparsity = self.fired = self.error = self.squares = 0.0
        self.total = np.zeros(d)
        self._start, self._waited = time.monotonic(), waited

    def add(self, losses: Losses, loss: float) -> None:
        y, n = losses.target, len(losses.target)
        self.rows += n
        self.fired += losses.l0.item() * n
        self.loss += loss * n
        self.sparsity += losses.sparsity.item() * n
        self.error += losses.reconstruction.item() * n
        backend = backend_for(y)
        total, squares = backend.moments(y) if backend else moments(y)
        self.squares += squares.item()
        self.total += total.cpu().numpy()

    def row(self, waited: float, **known) -> Row:
        seconds = max(time.monotonic() - self._start, 1e-9)
        variance = self.squares - float(self.total @ self.total) / self.rows  # sum of ||x - mean||^2
        return Row(
            loss=self.loss / self.rows,
            reconstruction=self.error / self.rows,
            sparsity=self.sparsity / self.rows,
            l0=self.fired / self.rows,
            fvu=self.error / variance if variance > 0 else float("nan"),
            steps_per_second=self.steps / seconds,
            waiting_share=min(1.0, (waited - self._waited) / seconds),
            **known,
        )
