"""Crosscoder: one set of latents reads several layers and rebuilds them all (Anthropic, October 2024).

    loss = sum_l ||x_l - x^_l||^2 + lambda E sum_i f_i sum_l ||W_dec,i^l||

With rows of all layers side by side it is an SAE of the wide row, but for the norms: a penalty that counts decoder norms
counts the sum over layers, so that a latent may leave a layer alone.
"""

import torch

from scopemill.trainer.sae.base import Sae


class Crosscoder(Sae):
    architecture = "crosscoder"

    def norms(self) -> torch.Tensor:
        return sum(block.norm(dim=1) for block in self.W_dec.split(self.shape.outputs, dim=1))
