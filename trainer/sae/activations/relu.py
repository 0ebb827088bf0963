"""Define ReLU with an L1 penalty weighted by decoder norms.

The penalty is lambda E sum_i f_i ||W_dec,i||. The penalty counts the norms, so the decoder needs no constraint.
"""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.decoder import Decoder
from scopemill.trainer.sparse.codes import Codes, Pre
from scopemill.trainer.sparse.entries import Entries, scan


class ReLU(Activation):
    """Keep the positive pre-activations."""

    name = "relu"

    @staticmethod
    def unit_decoder(config: SaeConfig) -> bool:
        return False

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre.relu()

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        return pre.codes(pre.values.relu())

    def select(
        self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, max_entries: int
    ) -> tuple[Entries, torch.Tensor] | None:
        return scan(products, bias, bias.new_zeros(self.width), max_entries)

    def penalty(self, codes: Codes, pre: Pre, decoder: Decoder, config: SaeConfig) -> torch.Tensor:
        return self.shard.all_reduce(codes.times(decoder.norms()).sum()) / pre.rows
