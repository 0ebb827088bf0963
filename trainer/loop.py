"""The training loop of one SAE: batches in, weights, history and counters out. It knows neither Ray nor sockets."""

import time
from collections.abc import Callable

import numpy as np
import torch

from scopemill.trainer.config import SaeConfig
from scopemill.trainer.history import History, Row
from scopemill.trainer.optimizer import Optimizer
from scopemill.trainer.sae import Losses, Sae
from scopemill.trainer.schedule import learning_rate, sparsity_factor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Loop:
    """``step`` consumes one batch [B, d] of scaled activations. State: the SAE, the optimiser, the dead counters."""

    def __init__(self, sae: Sae, config: SaeConfig, history: History, waited: Callable[[], float] = lambda: 0.0):
        self.sae, self.config, self.history = sae, config, history
        self.optimizer = Optimizer(sae, config)
        self.tokens_since_fired = torch.zeros(sae.width, dtype=torch.int64)
        self.step_number = 0  # steps done
        self._waited = waited  # seconds spent waiting for data so far
        self._interval = _Interval(sae.d, waited())

    def restore(self, step: int, second_moments: dict[str, torch.Tensor], tokens_since_fired: torch.Tensor) -> None:
        self.step_number = self.optimizer.updates = step
        for name, v in second_moments.items():
            self.optimizer.second_moments[name].copy_(v)
        self.tokens_since_fired = tokens_since_fired

    @property
    def done(self) -> bool:
        return self.step_number >= self.config.steps

    def step(self, x: torch.Tensor) -> None:
        config = self.config
        coefficient = config.sparsity * sparsity_factor(config, self.step_number)
        losses = self.sae.losses(x, config)
        losses.total(coefficient).backward()
        self.optimizer.update(learning_rate(config, self.step_number))
        self.tokens_since_fired += len(x)
        self.tokens_since_fired[(losses.latents.amax(0) > 0).cpu()] = 0
        self.step_number += 1
        self._interval.add(x, losses, coefficient)
        if self.step_number % config.log_every == 0 or self.done:
            self.flush()

    def flush(self) -> None:
        """Close the interval: its row goes into the history."""
        if not self._interval.steps:
            return
        last = self.step_number - 1
        factor = sparsity_factor(self.config, last)
        self.history.rows.append(
            self._interval.row(
                step=self.step_number,
                tokens=self.step_number * self.config.batch_size,
                dead_latents=int((self.tokens_since_fired >= self.config.dead_after_tokens).sum()),
                learning_rate=learning_rate(self.config, last),
                sparsity_coefficient=self.config.sparsity,
                sparsity_factor=factor,
                waited=self._waited(),
            )
        )
        self._interval = _Interval(self.sae.d, self._waited())


class _Interval:
    """Sums over the steps of one history row, those of the variance in float64."""

    def __init__(self, d: int, waited: float):
        self.steps = self.rows = self.fired = 0
        self.loss = self.sparsity = self.error = self.squares = 0.0
        self.total = np.zeros(d)
        self._start, self._waited = time.monotonic(), waited

    def add(self, x: torch.Tensor, losses: Losses, coefficient: float) -> None:
        self.steps += 1
        self.rows += len(x)
        self.fired += int(losses.latents.count_nonzero())
        self.loss += losses.total(coefficient).item()
        self.sparsity += losses.sparsity.item()
        self.error += losses.reconstruction.item() * len(x)
        self.squares += torch.linalg.vector_norm(x, dtype=torch.float64).item() ** 2  # squares themselves are float64
        self.total += x.sum(0, dtype=torch.float64).cpu().numpy()

    def row(self, waited: float, **known) -> Row:
        seconds = max(time.monotonic() - self._start, 1e-9)
        variance = self.squares - float(self.total @ self.total) / self.rows  # sum of ||x - mean||^2
        return Row(
            loss=self.loss / self.steps,
            reconstruction=self.error / self.rows,
            sparsity=self.sparsity / self.steps,
            l0=self.fired / self.rows,
            fvu=self.error / variance if variance > 0 else float("nan"),
            steps_per_second=self.steps / seconds,
            waiting_share=min(1.0, (waited - self._waited) / seconds),
            **known,
        )


def to_tensor(rows: np.ndarray, dtype: str, device: torch.device) -> torch.Tensor:
    """A batch as it came over the wire [B, d] to float32 on the device; a copy, so the message's memory is free."""
    bits = torch.empty(rows.shape, dtype=torch.int16 if dtype == "bfloat16" else torch.int32)
    bits.numpy()[:] = rows.view(bits.numpy().dtype)
    return bits.view(DTYPES[dtype]).to(device=device, dtype=torch.float32)
