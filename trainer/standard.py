"""The standard SAE: ReLU with an L1 penalty that counts each latent by its decoder row's norm.

loss = E ||x - x_hat||^2 + lambda * E sum_i f_i ||W_dec,i||. Norms are part of the penalty, so the decoder needs no constraint.
"""

import torch

from scopemill.trainer.config import SaeConfig
from scopemill.trainer.sae import Losses, Sae


class Standard(Sae):
    architecture = "standard"
    unit_decoder = False

    def activate(self, pre: torch.Tensor) -> torch.Tensor:
        return pre.relu()

    def losses(self, x: torch.Tensor, config: SaeConfig) -> Losses:
        latents = self.encode(x)
        error = (self.decode(latents) - x).square().sum() / len(x)
        l1 = (latents @ self.W_dec.norm(dim=1)).sum() / len(x)
        return Losses(error, l1, latents.detach())
