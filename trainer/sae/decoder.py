"""Describe the decoder that a penalty or an auxiliary loss needs."""

from typing import Protocol

import torch

from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sparse.codes import Codes


class Decoder(Protocol):
    """Describe the part of an SAE that follows the activation."""

    @property
    def shape(self) -> Shape:
        """Return the widths of inputs and outputs."""

    @property
    def W_dec(self) -> torch.Tensor:
        """Return the decoder's rows [F, d_out]; cross-layer transcoders have one matrix per layer instead."""

    @property
    def b_dec(self) -> torch.Tensor:
        """Return the decoder's bias [d_out]."""

    def norms(self) -> torch.Tensor:
        """Return the norm [F] of each latent's decoder row, as a penalty counts it."""

    def decode_no_bias(self, codes: Codes) -> torch.Tensor:
        """Return the decoder's output [..., d_out] without the bias, summed over ranks."""
