"""ReLU with an L1 penalty that counts each latent by its decoder row's norm: lambda E sum_i f_i ||W_dec,i||.

Norms are part of the penalty, so the decoder needs no constraint.
"""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.activations.base import Activation, Norms
from scopemill.trainer.sparse.codes import Codes, Pre
from scopemill.trainer.sparse.entries import Entries, scan


class ReLU(Activation):
    name = "relu"

    @staticmethod
    def unit_decoder(config: SaeConfig) -> bool:
        return False

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre.relu()

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        return pre.codes(pre.values.relu())

    def select(self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, at_most: int) -> tuple[Entries, torch.Tensor] | None:
        return scan(products, bias, bias.new_zeros(self.width), at_most)

    def penalty(self, codes: Codes, pre: Pre, norms: Norms, config: SaeConfig) -> torch.Tensor:
        return self.part.sum(codes.times(norms()).sum()) / pre.rows
