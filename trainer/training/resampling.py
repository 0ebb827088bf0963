"""Resample dead latents from the rows that are reconstructed worst (Anthropic, Towards Monosemanticity, October 2023).

A dead latent gets a row of the batch, drawn with probability proportional to the square of the row's loss. The row gives the direction of
the decoder row, and of the encoder row at a fifth of the mean norm of the other encoder rows; bias and threshold start anew, and the
moments are cleared.
"""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.training.optimizer import Optimizer

ENCODER_SHARE = 0.2


def due(config: SaeConfig, step: int) -> bool:
    """Return whether dead latents are resampled after step ``step`` (from 1)."""
    every = config.resample_every
    return every is not None and step % every == 0 and step <= config.resample_until * config.steps


@torch.no_grad()
def resample(sae: Sae, optimizer: Optimizer, x: torch.Tensor, dead: torch.Tensor, config: SaeConfig, step: int) -> None:
    """Resample the ``dead`` latents [F] from the batch x [B, d].

    The draw depends on the arguments alone, so a resumed run repeats it.
    """
    count = int(dead.sum())
    if not count:
        return
    x = sae.normalized(x)[0]
    losses = (x - sae(x)).square().sum(dim=1)
    generator = torch.Generator().manual_seed(config.seed + step)
    weights = losses.square().cpu() + torch.finfo(losses.dtype).tiny  # a row without loss may be drawn where no other is left
    chosen = torch.multinomial(weights, count, replacement=count > len(x), generator=generator).to(x.device)
    directions = x[chosen] - sae.b_dec if sae.centred else x[chosen]
    directions = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-12)
    alive = sae.W_enc[~dead]
    norm = alive.norm(dim=1).mean() if len(alive) else 1.0
    sae.W_enc[dead] = ENCODER_SHARE * norm * directions
    sae.W_dec[dead] = sae.W_enc[dead] if config.tied_weights else directions
    if sae.b_enc is not None:
        sae.b_enc[dead] = 0
    if isinstance(sae.activation, JumpReLU):
        sae.activation.threshold[dead] = config.initial_threshold
    for name in ("W_dec", "W_enc", "b_enc", "activation.threshold"):
        optimizer.clear_rows(name, dead)
