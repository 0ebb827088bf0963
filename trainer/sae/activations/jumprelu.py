"""JumpReLU: arXiv 2407.14435, trained as in Gemma Scope (2408.05147), Gemma Scope 2, or Anthropic's update of January 2025.

f = z * 1[z > theta]. Neither that step nor the count ||f||_0 has a useful derivative, so the threshold gets a
pseudo-gradient through the rectangle kernel K(u) = 1[|u| < 1/2] of bandwidth eps:

    d f / d theta = -(theta / eps) K((z - theta) / eps)        d ||f||_0 / d theta = -(1 / eps) K((z - theta) / eps)

and the count passes nothing to z. With p_i the share of rows in which latent i fires, L0 = sum_i p_i, and the penalties are

    l0         L0 + sum_i p_i^2 / f0                           the second term only with a frequency limit f0
    target_l0  (2 / L0*) (L0 - L0*)^2 + sum_i p_i^2 / f0       L0 is the batch's mean
    tanh       E sum_i tanh(c f_i ||W_dec,i||)

beside which sum_i ReLU(theta_i - z_i) ||W_dec,i|| may stand, which brings back latents that never fire.
"""

import torch
from torch import nn

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.activations.base import Activation, Norms
from scopemill.trainer.sparse.codes import Codes, DenseCodes, Pre, SparseCodes, SparsePre, share
from scopemill.trainer.sparse.entries import Entries, scan


class _JumpReLU(torch.autograd.Function):
    """(z [B, F], theta [F]) to (f [B, F], p [F]). One function, so the kernel's band is found once."""

    @staticmethod
    def forward(ctx, z, threshold, bandwidth):
        active = z > threshold
        ctx.save_for_backward(z, threshold, active)
        ctx.bandwidth = bandwidth
        return z * active, share(active).to(z.dtype)

    @staticmethod
    def backward(ctx, d_f, d_p):
        z, threshold, active = ctx.saved_tensors
        everything = z - threshold  # [B, F], memory for all that follows: each such matrix more is a tenth of the encoder's product
        band = everything.abs_() < ctx.bandwidth / 2
        on_band = torch.mul(d_f, band, out=everything).sum(0)
        d_threshold = (threshold * on_band + d_p * share(band).to(z.dtype)) / -ctx.bandwidth
        return d_f * active, d_threshold, None


class _JumpReLUAt(torch.autograd.Function):
    """The same at entries: (z [n], theta [F]) to (f [n], p [F]). The entries hold all that is active or in the band."""

    @staticmethod
    def forward(ctx, z, threshold, bandwidth, entries):
        at = threshold[entries.latents]
        active = z > at
        ctx.save_for_backward(z, at, active)
        ctx.bandwidth, ctx.entries = bandwidth, entries
        return z * active, entries.share(active)

    @staticmethod
    def backward(ctx, d_f, d_p):
        z, at, active = ctx.saved_tensors
        band = (z - at).abs_() < ctx.bandwidth / 2
        pseudo = torch.where(band, d_f * at + d_p[ctx.entries.latents] / ctx.entries.rows, 0.0)
        return d_f * active, ctx.entries.add_up(pseudo) / -ctx.bandwidth, None, None


class JumpReLU(Activation):
    name = "jumprelu"

    def __init__(self, width: int):
        super().__init__(width)
        self.threshold = nn.Parameter(torch.zeros(width))

    @classmethod
    def initial(cls, config: SaeConfig, width: int) -> "JumpReLU":
        activation = cls(width)
        nn.init.constant_(activation.threshold, config.initial_threshold)
        return activation

    @staticmethod
    def unit_decoder(config: SaeConfig) -> bool:
        return config.penalty != "tanh"

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre * (pre > self.threshold)

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        if isinstance(pre, SparsePre):
            return SparseCodes(*_JumpReLUAt.apply(pre.values, self.threshold, config.bandwidth, pre.entries), pre.entries)
        return DenseCodes(*_JumpReLU.apply(pre.values, self.threshold, config.bandwidth))

    def select(self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, at_most: int) -> tuple[Entries, torch.Tensor] | None:
        if config.pre_activation_coefficient:  # every latent that does not fire counts there
            return None
        return scan(products, bias, self.threshold - config.bandwidth / 2, at_most)

    def penalty(self, codes: Codes, pre: Pre, norms: Norms, config: SaeConfig) -> torch.Tensor:
        if config.penalty == "tanh":
            return self.part.sum((config.tanh_scale * codes.times(norms())).tanh().sum()) / pre.rows
        l0 = self.part.sum(codes.l0)
        penalty = l0 if config.penalty == "l0" else (2 / config.sparsity) * (l0 - config.sparsity) ** 2
        if not config.frequency_limit:
            return penalty
        return penalty + self.part.sum(codes.frequency.square().sum()) / config.frequency_limit

    def auxiliary(self, sae, pre, y, miss, dead, config) -> torch.Tensor | float:
        """The pre-activation loss: by how much latents stay below their thresholds, times their norms."""
        if not config.pre_activation_coefficient:
            return 0.0
        return config.pre_activation_coefficient * self.part.sum(((self.threshold - pre.values).relu() * sae.norms()).sum()) / pre.rows

    @torch.no_grad()
    def begin(self, pre: torch.Tensor, config: SaeConfig) -> None:
        """Thresholds at the quantiles that let each latent fire in a share of L0 / F of the rows; where a batch has too few rows
        for that, one quantile of all latents together."""
        if config.initial_l0 is not None:
            fires = min(1.0, config.initial_l0 / self.part.width) * len(pre)
            if fires >= 1:
                quantiles = pre.kthvalue(max(1, len(pre) - round(fires)), dim=0).values
            else:
                some = pre[:64]
                above = max(1, round(fires * len(some) * self.part.width / len(pre)))  # of them, so many shall fire
                largest = some.flatten().topk(min(above + 1, some.numel()), sorted=False).values
                quantiles = self.part.smallest_of_largest(largest, above + 1)
            self.threshold.copy_(quantiles.expand(self.width).clamp(min=0))

    @torch.no_grad()
    def after_update(self) -> None:
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def finished(self, scale: float, bias: torch.Tensor) -> tuple[torch.Tensor, "JumpReLU"]:
        bias, activation = super().finished(scale, bias)
        activation.threshold.mul_(scale)
        return bias, activation
