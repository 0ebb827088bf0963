"""JumpReLU with an L0 penalty: arXiv 2407.14435, trained as in Gemma Scope (2408.05147).

f = z * 1[z > theta], loss = E ||x - x_hat||^2 + lambda * E ||f||_0. Neither step has a useful derivative, so the
threshold gets a pseudo-gradient through the rectangle kernel K(u) = 1[|u| < 1/2] of bandwidth eps:

    d f / d theta = -(theta / eps) K((z - theta) / eps)        d ||f||_0 / d theta = -(1 / eps) K((z - theta) / eps)

and the L0 step passes nothing to z.
"""

import torch
from torch import nn

from scopemill.trainer.config import SaeConfig
from scopemill.trainer.sae import Losses, Sae


class _JumpReLU(torch.autograd.Function):
    """(z [B, F], theta [F]) to (f [B, F], mean L0 per row). One function, so the kernel's band is found once."""

    @staticmethod
    def forward(ctx, z, threshold, bandwidth):
        active = z > threshold
        ctx.save_for_backward(z, threshold, active)
        ctx.bandwidth = bandwidth
        return z * active, active.count_nonzero().to(z.dtype) / len(z)

    @staticmethod
    def backward(ctx, d_f, d_l0):
        z, threshold, active = ctx.saved_tensors
        band = (z - threshold).abs_() < ctx.bandwidth / 2
        # Both pseudo-gradients live on the band, so one masked sum serves them.
        d_threshold = torch.where(band, d_f * threshold + d_l0 / len(z), 0.0).sum(0) / -ctx.bandwidth
        return d_f * active, d_threshold, None


class JumpReLU(Sae):
    architecture = "jumprelu"
    unit_decoder = True

    def __init__(self, d: int, width: int, centred: bool):
        super().__init__(d, width, centred)
        self.threshold = nn.Parameter(torch.zeros(width))

    @classmethod
    def initial(cls, config: SaeConfig, d: int, mean: torch.Tensor) -> "JumpReLU":
        sae = super().initial(config, d, mean)
        nn.init.constant_(sae.threshold, config.initial_threshold)
        return sae

    def activate(self, pre: torch.Tensor) -> torch.Tensor:
        return pre * (pre > self.threshold)

    def losses(self, x: torch.Tensor, config: SaeConfig) -> Losses:
        latents, l0 = _JumpReLU.apply(self.pre_activations(x), self.threshold, config.bandwidth)
        error = (self.decode(latents) - x).square().sum() / len(x)
        return Losses(error, l0, latents.detach())

    @torch.no_grad()
    def after_update(self) -> None:
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def folded(self, scale: float) -> "JumpReLU":
        sae = super().folded(scale)
        sae.threshold.copy_(scale * self.threshold)
        return sae
