"""Keep what fine-tuning must not change: the norms of decoder rows, and thresholds."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from scopemill.trainer.sae.base import Sae

SMALLEST_NORM = 1e-12


class KeptNorms:
    """Keep the norm of each decoder row.

    Without this an SAE could shrink its penalty, or pass its thresholds, by the scale of its rows.
    """

    def __init__(self, sae: Sae):
        self._rows = [weights for name, weights in sae.named_parameters() if name.split(".")[0] == "W_dec"]
        self._norms = [_norms(weights.detach()) for weights in self._rows]

    @torch.no_grad()
    def project(self) -> None:
        """Remove the part of each row's gradient that lies along the row."""
        for weights in self._rows:
            if weights.grad is not None:
                unit = weights / _norms(weights)
                weights.grad -= (weights.grad * unit).sum(-1, keepdim=True) * unit

    @torch.no_grad()
    def restore(self) -> None:
        """Give each row its first norm again."""
        for weights, norms in zip(self._rows, self._norms, strict=True):
            weights.mul_(norms / _norms(weights))


def _norms(weights: torch.Tensor) -> torch.Tensor:
    return weights.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM)


def freeze_thresholds(sae: Sae) -> None:
    """Freeze the thresholds of a JumpReLU; inference gives them no gradient."""
    for name, parameter in sae.activation.named_parameters():
        if name == "threshold":
            parameter.requires_grad_(False)


def parameter_groups(sae: Sae, learning_rate: float) -> list[dict[str, Any]]:
    """Return Adam's groups of parameters with the learning rate of each.

    Latents may have any scale: an SAE whose decoder rows are n long is the same function as one with unit rows and latents n times as
    large. The learning rates are such that both make the same steps: n times for the decoder's rows, 1/n for all that makes latents.
    """
    scale = float(sae.norms().detach().mean())
    decoder: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    encoder: list[nn.Parameter] = []
    for name, parameter in _trained(sae):
        part = name.split(".")[0]
        (decoder if part == "W_dec" else biases if part in ("b_dec", "skip") else encoder).append(parameter)
    rates = ((decoder, scale), (biases, 1.0), (encoder, 1 / scale if scale else 1.0))
    return [{"params": parameters, "base_lr": learning_rate * rate} for parameters, rate in rates if parameters]


def trained_names(sae: Sae) -> list[str]:
    """Return the names of the parameters that fine-tuning trains, in order."""
    return [name for name, _ in _trained(sae)]


def _trained(sae: Sae) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in sae.named_parameters() if parameter.requires_grad)
