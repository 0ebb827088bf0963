"""Schedule learning rate and sparsity over the steps.

Schedules are pure functions, so a resumed run needs no state.
"""

import math

from scopemill.trainer.config.recipe import SaeConfig

WARMUP_START = 0.1  # share of the learning rate


def learning_rate(config: SaeConfig, step: int) -> float:
    """Return the learning rate of step ``step`` (from 0).

    A cosine from a tenth up to the full rate, then constant, then linear to zero.
    """
    if step < config.lr_warmup_steps:
        progress = step / config.lr_warmup_steps
        return config.learning_rate * (WARMUP_START + (1 - WARMUP_START) * (1 - math.cos(math.pi * progress)) / 2)
    decay_steps = int(config.steps * config.lr_decay_fraction)
    left = config.steps - step
    return config.learning_rate * (min(1.0, left / decay_steps) if decay_steps else 1.0)


def sparsity_factor(config: SaeConfig, step: int) -> float:
    """Return the factor of the sparsity coefficient at step ``step``, counted from 0.

    It rises linearly from 0 to 1.
    """
    warmup = max(config.sparsity_warmup_steps, config.sparsity_warmup_fraction * config.steps)
    return min(1.0, step / warmup) if warmup else 1.0
