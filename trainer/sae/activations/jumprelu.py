"""Define JumpReLU (arXiv 2407.14435).

It is trained as in Gemma Scope (2408.05147), Gemma Scope 2, or Anthropic's update of January 2025.

f = z * 1[z > theta]. Neither that step nor the count ||f||_0 has a useful derivative, so the threshold gets a
pseudo-gradient through the rectangle kernel K(u) = 1[|u| < 1/2] of bandwidth eps:

    d f / d theta = -(theta / eps) K((z - theta) / eps)        d ||f||_0 / d theta = -(1 / eps) K((z - theta) / eps)

and the count passes nothing to z. With p_i the share of rows in which latent i fires, L0 = sum_i p_i, and the penalties are

    l0         L0 + sum_i p_i^2 / f0                           the second term only with a frequency limit f0
    target_l0  (2 / L0*) (L0 - L0*)^2 + sum_i p_i^2 / f0       L0 is the batch's mean
    tanh       E sum_i tanh(c f_i ||W_dec,i||)

An optional auxiliary loss, sum_i ReLU(theta_i - z_i) ||W_dec,i||, revives latents that never fire.
"""

from typing import Self

import torch
from torch import nn

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.decoder import Decoder
from scopemill.trainer.sparse.codes import Codes, DenseCodes, Pre, SparseCodes, SparsePre, share
from scopemill.trainer.sparse.entries import Entries, scan


class _JumpReLU(torch.autograd.Function):
    """Map (z [B, F], theta [F]) to (f [B, F], p [F]). One function for both, so the kernel's band is found once."""

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
    """Map (z [n], theta [F]) to (f [n], p [F]) at entries, which include all that is active or in the band."""

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
        return d_f * active, ctx.entries.sum_by_latent(pseudo) / -ctx.bandwidth, None, None


class JumpReLU(Activation):
    """Keep pre-activations above a learnt threshold per latent."""

    name = "jumprelu"

    def __init__(self, width: int, shard: LatentShard | None = None):
        super().__init__(width, shard)
        self.threshold = nn.Parameter(torch.zeros(width))

    @classmethod
    def initial(cls, config: SaeConfig, shard: LatentShard) -> Self:
        activation = cls(shard.local_width, shard)
        nn.init.constant_(activation.threshold, config.initial_threshold)
        return activation

    @staticmethod
    def unit_decoder(config: SaeConfig) -> bool:
        return config.penalty != "tanh"

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre * (pre > self.threshold)

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        if isinstance(pre, SparsePre):
            values, frequency = _JumpReLUAt.apply(pre.values, self.threshold, config.bandwidth, pre.entries)
            return SparseCodes(values, frequency, pre.entries, pre.gradients)
        return DenseCodes(*_JumpReLU.apply(pre.values, self.threshold, config.bandwidth))

    def select(
        self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, max_entries: int
    ) -> tuple[Entries, torch.Tensor] | None:
        if config.pre_activation_coefficient:  # every latent that does not fire counts there
            return None
        return scan(products, bias, self.threshold - config.bandwidth / 2, max_entries)

    def penalty(self, codes: Codes, pre: Pre, decoder: Decoder, config: SaeConfig) -> torch.Tensor:
        if config.penalty == "tanh":
            return self.shard.all_reduce((config.tanh_scale * codes.times(decoder.norms())).tanh().sum()) / pre.rows
        l0 = self.shard.all_reduce(codes.l0)
        penalty = l0 if config.penalty == "l0" else (2 / config.sparsity) * (l0 - config.sparsity) ** 2
        if not config.frequency_limit:
            return penalty
        return penalty + self.shard.all_reduce(codes.frequency.square().sum()) / config.frequency_limit

    def auxiliary(
        self, decoder: Decoder, pre: Pre, y: torch.Tensor, error: torch.Tensor, dead: torch.Tensor, config: SaeConfig
    ) -> torch.Tensor | float:
        """Return the pre-activation loss: how far latents stay below their thresholds, times their norms."""
        if not config.pre_activation_coefficient:
            return 0.0
        return (
            config.pre_activation_coefficient
            * self.shard.all_reduce(((self.threshold - pre.values).relu() * decoder.norms()).sum())
            / pre.rows
        )

    @torch.no_grad()
    def calibrate(self, pre: torch.Tensor, config: SaeConfig) -> None:
        """Set thresholds so that ``config.initial_l0`` latents fire in a row of the first batch.

        Each latent gets its own quantile; where a batch has too few rows for that, all get one quantile of all latents together.
        """
        if config.initial_l0 is not None:
            fires = min(1.0, config.initial_l0 / self.shard.width) * len(pre)
            if fires >= 1:
                quantiles = pre.kthvalue(max(1, len(pre) - round(fires)), dim=0).values
            else:
                sample = pre[:64]
                above = max(1, round(fires * len(sample) * self.shard.width / len(pre)))  # so many of the sample shall fire
                largest = sample.flatten().topk(min(above + 1, sample.numel()), sorted=False).values
                quantiles = self.shard.kth_largest(largest, above + 1)
            self.threshold.copy_(quantiles.expand(self.width).clamp(min=0))

    @torch.no_grad()
    def after_update(self) -> None:
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def folded(self, scale: float, bias: torch.Tensor) -> tuple[torch.Tensor, Activation]:
        activation = self.copied()
        activation.threshold.mul_(scale)
        return scale * bias, activation
