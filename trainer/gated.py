"""Gated: arXiv 2404.16014. One encoder decides which latents fire and, rescaled, how strongly.

With u = W_enc (x - b_dec): gate = u + b_gate, magnitude = exp(r_mag) u + b_mag, f = 1[gate > 0] ReLU(magnitude), and

    loss = ||x - x^||^2 + lambda E sum_i ReLU(gate_i) + ||x - x^_frozen(ReLU(gate))||^2

where x^_frozen is the decoder without a gradient of its own. Decoder rows are kept at unit norm.
"""

import torch
from torch import nn

from scopemill.trainer.activation import Activation
from scopemill.trainer.codes import Codes
from scopemill.trainer.config import SaeConfig


class Gated(Activation):
    name = "gated"
    has_bias = False

    def __init__(self, width: int):
        super().__init__(width)
        self.b_gate = nn.Parameter(torch.zeros(width))
        self.r_mag = nn.Parameter(torch.zeros(width))
        self.b_mag = nn.Parameter(torch.zeros(width))

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return (pre + self.b_gate > 0) * (pre * self.r_mag.exp() + self.b_mag).relu()

    def codes(self, pre: torch.Tensor, config: SaeConfig) -> Codes:
        return Codes.of(self(pre))

    def penalty(self, codes: Codes, pre: torch.Tensor, norms: torch.Tensor, config: SaeConfig) -> torch.Tensor:
        return (pre + self.b_gate).relu().sum() / len(pre)

    def auxiliary(self, sae, pre, y, error, dead, config) -> torch.Tensor:
        rebuilt = (pre + self.b_gate).relu() @ sae.W_dec.detach() + sae.b_dec.detach()
        return (y - rebuilt).square().sum() / len(y)

    @torch.no_grad()
    def finished(self, scale: float, bias: torch.Tensor) -> tuple[torch.Tensor, "Gated"]:
        """``bias`` goes into both biases: the encoder has none."""
        activation = self.copied()
        activation.b_gate.copy_(scale * (self.b_gate + bias))
        activation.b_mag.copy_(scale * (self.b_mag + self.r_mag.exp() * bias))
        return torch.zeros_like(bias), activation
