"""Adam with beta1 = 0, which needs no first moment, and the unit-norm constraint on the decoder."""

import torch

from scopemill.trainer.config import SaeConfig
from scopemill.trainer.sae import Sae


class Optimizer:
    """theta <- theta - lr * g / (sqrt(v / (1 - beta2^t)) + eps), v <- beta2 v + (1 - beta2) g^2.

    Where the architecture asks for a unit decoder, the gradient's part along each decoder row is removed before Adam
    sees it, and rows are brought back to unit norm after the update (Gemma Scope).
    """

    def __init__(self, sae: Sae, config: SaeConfig):
        self._sae, self._config = sae, config
        self.second_moments = {name: torch.zeros_like(p) for name, p in sae.named_parameters()}
        self.updates = 0

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """Apply and clear the gradients."""
        if self._sae.unit_decoder:
            remove_parallel(self._sae.W_dec.grad, self._sae.W_dec)
        self.updates += 1
        beta2 = self._config.adam_beta2
        correction = (1 - beta2**self.updates) ** 0.5
        for name, parameter in self._sae.named_parameters():
            gradient, v = parameter.grad, self.second_moments[name]
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            parameter.addcdiv_(gradient, (v.sqrt() / correction).add_(self._config.adam_epsilon), value=-learning_rate)
            parameter.grad = None
        if self._sae.unit_decoder:
            self._sae.W_dec /= self._sae.W_dec.norm(dim=1, keepdim=True)
        self._sae.after_update()


def remove_parallel(gradient: torch.Tensor, rows: torch.Tensor) -> None:
    """Remove in place from each gradient row [F, d] its part along the unit row beside it."""
    gradient -= (gradient * rows).sum(dim=1, keepdim=True) * rows
