"""A JumpReLU SAE's training step as one writes it in torch: dense tensors, autograd, torch.optim.Adam. What ours is held against."""

import torch
from torch import nn


class JumpReLU(torch.autograd.Function):
    """(z [B, F], theta [F]) to (f [B, F], p [F]): arXiv 2407.14435, with the rectangle kernel's pseudo-gradients."""

    @staticmethod
    def forward(ctx, z, threshold, bandwidth):
        active = z > threshold
        ctx.save_for_backward(z, threshold, active)
        ctx.bandwidth = bandwidth
        return z * active, active.float().mean(0)

    @staticmethod
    def backward(ctx, d_f, d_p):
        z, threshold, active = ctx.saved_tensors
        band = (z - threshold).abs() < ctx.bandwidth / 2
        d_threshold = -(band * (threshold * d_f + d_p / len(z))).sum(0) / ctx.bandwidth
        return d_f * active, d_threshold, None


class PlainJumpReluSae(nn.Module):
    """Loss ||x - x^||^2 + coefficient L0, a decoder of unit rows; ``weights`` by the names that ours have."""

    def __init__(self, weights: dict[str, torch.Tensor], bandwidth: float, learning_rate: float, beta2: float, epsilon: float):
        super().__init__()
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "activation.threshold"):
            setattr(self, name.rsplit(".", 1)[-1], nn.Parameter(weights[name].detach().clone()))
        self.bandwidth = bandwidth
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate, betas=(0.0, beta2), eps=epsilon, foreach=True)

    def loss(self, x: torch.Tensor, coefficient: float) -> torch.Tensor:
        """Of a batch [B, d]."""
        pre = nn.functional.linear(x - self.b_dec, self.W_enc, self.b_enc)
        latents, frequency = JumpReLU.apply(pre, self.threshold, self.bandwidth)
        error = latents @ self.W_dec + self.b_dec - x
        return error.square().sum(1).mean() + coefficient * frequency.sum()

    def step(self, x: torch.Tensor, coefficient: float) -> None:
        self.optimizer.zero_grad()
        self.loss(x, coefficient).backward()
        with torch.no_grad():
            gradient, rows = self.W_dec.grad, self.W_dec
            gradient -= (gradient * rows).sum(1, keepdim=True) * rows
            self.optimizer.step()
            rows /= rows.norm(dim=1, keepdim=True)
            self.threshold.clamp_(min=0)
