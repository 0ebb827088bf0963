"""Define Gated (arXiv 2404.16014): one encoder decides which latents fire and how strongly.

For the second use its products are rescaled.

With u = W_enc (x - b_dec): gate = u + b_gate, magnitude = exp(r_mag) u + b_mag, f = 1[gate > 0] ReLU(magnitude), and

    loss = ||x - x^||^2 + lambda E sum_i ReLU(gate_i) + ||x - x^_frozen(ReLU(gate))||^2

where x^_frozen uses the decoder without a gradient. Decoder rows are kept at unit norm.
"""

import torch
from torch import nn

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.decoder import Decoder
from scopemill.trainer.sparse.codes import Codes, Pre
from scopemill.trainer.sparse.entries import Entries, scan


class Gated(Activation):
    """Let a gate decide which latents fire, and a rescaled magnitude how strongly."""

    name = "gated"
    has_bias = False

    def __init__(self, width: int, shard: LatentShard | None = None):
        super().__init__(width, shard)
        self.b_gate = nn.Parameter(torch.zeros(width))
        self.r_mag = nn.Parameter(torch.zeros(width))
        self.b_mag = nn.Parameter(torch.zeros(width))

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return (pre + self.b_gate > 0) * (pre * self.r_mag.exp() + self.b_mag).relu()

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        magnitude = (pre.values * pre.spread(self.r_mag.exp()) + pre.spread(self.b_mag)).relu()
        return pre.codes((pre.values + pre.spread(self.b_gate) > 0) * magnitude)

    def select(
        self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, max_entries: int
    ) -> tuple[Entries, torch.Tensor] | None:
        return scan(products, bias, -self.b_gate, max_entries)

    def penalty(self, codes: Codes, pre: Pre, decoder: Decoder, config: SaeConfig) -> torch.Tensor:
        return self.shard.all_reduce(self._gate(pre).sum()) / pre.rows

    def auxiliary(
        self, decoder: Decoder, pre: Pre, y: torch.Tensor, error: torch.Tensor, dead: torch.Tensor, config: SaeConfig
    ) -> torch.Tensor:
        reconstruction = pre.codes(self._gate(pre)).decode(decoder.W_dec.detach()).to(y.dtype)
        return (y - (self.shard.all_reduce(reconstruction) + decoder.b_dec.detach())).square().sum() / pre.rows

    def _gate(self, pre: Pre) -> torch.Tensor:
        return (pre.values + pre.spread(self.b_gate)).relu()

    @torch.no_grad()
    def folded(self, scale: float, bias: torch.Tensor) -> tuple[torch.Tensor, Activation]:
        """Return a zero encoder bias, and the activation.

        ``bias`` is folded into both of the activation's own biases.
        """
        activation = self.copied()
        activation.b_gate.copy_(scale * (self.b_gate + bias))
        activation.b_mag.copy_(scale * (self.b_mag + self.r_mag.exp() * bias))
        return torch.zeros_like(bias), activation
