"""ReLU with an L1 penalty that counts each latent by its decoder row's norm: lambda E sum_i f_i ||W_dec,i||.

Norms are part of the penalty, so the decoder needs no constraint.
"""

import torch

from scopemill.trainer.activation import Activation
from scopemill.trainer.codes import Codes
from scopemill.trainer.config import SaeConfig


class ReLU(Activation):
    name = "relu"

    @staticmethod
    def unit_decoder(config: SaeConfig) -> bool:
        return False

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre.relu()

    def codes(self, pre: torch.Tensor, config: SaeConfig) -> Codes:
        return Codes.of(pre.relu())

    def penalty(self, codes: Codes, pre: torch.Tensor, norms: torch.Tensor, config: SaeConfig) -> torch.Tensor:
        return codes.times(norms).sum() / len(pre)
