"""Define crosscoders (Anthropic, October 2024).

One set of latents reads several layers and reconstructs them all.

    loss = sum_l ||x_l - x^_l||^2 + lambda E sum_i f_i sum_l ||W_dec,i^l||

With rows of all layers side by side a crosscoder is an SAE of the wide row, except for the norms: a penalty that counts decoder norms
counts the sum over layers, so that a latent may leave a layer alone.
"""

from functools import reduce

import torch

from scopemill.trainer.sae.base import Sae


class Crosscoder(Sae):
    """Define an SAE of several layers, whose decoder norms are summed over layers."""

    architecture = "crosscoder"

    def norms(self) -> torch.Tensor:
        return reduce(torch.add, (block.norm(dim=1) for block in self.W_dec.split(self.shape.outputs, dim=1)))
