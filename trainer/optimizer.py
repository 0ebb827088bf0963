"""Adam with beta1 = 0, which needs no first moment, and the unit-norm constraint on the decoder."""

import torch

from scopemill.trainer.config import SaeConfig
from scopemill.trainer.sae import Sae


class Optimizer:
    """theta <- theta - lr * g / (sqrt(v / (1 - beta2^t)) + eps), v <- beta2 v + (1 - beta2) g^2.

    Where the architecture asks for a unit decoder, the gradient's part along each decoder row is removed before Adam
    sees it, and rows are brought back to unit norm after the update (Gemma Scope). ``clip_gradient`` bounds the norm of
    what is left of the whole gradient.
    """

    def __init__(self, sae: Sae, config: SaeConfig):
        self._sae, self._config = sae, config
        self._unit_decoder = sae.keeps_unit_decoder(config)
        self.second_moments = {name: torch.zeros_like(p) for name, p in sae.named_parameters()}
        self.updates = 0

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """Apply and clear the gradients. A parameter without one had no part in the loss: its gradient is zero."""
        config, parameters = self._config, dict(self._sae.named_parameters())
        if self._unit_decoder:
            remove_parallel(self._sae.W_dec.grad, self._sae.W_dec)
        if config.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip_gradient)
        self.updates += 1
        correction = (1 - config.adam_beta2**self.updates) ** 0.5
        for name, parameter in parameters.items():
            gradient, v = parameter.grad, self.second_moments[name]
            v.mul_(config.adam_beta2)
            if gradient is None:
                continue
            v.addcmul_(gradient, gradient, value=1 - config.adam_beta2)
            parameter.addcdiv_(gradient, (v.sqrt() / correction).add_(config.adam_epsilon), value=-learning_rate)
            parameter.grad = None
        if self._unit_decoder:
            self._sae.W_dec /= self._sae.W_dec.norm(dim=1, keepdim=True)
        self._sae.activation.after_update()


def remove_parallel(gradient: torch.Tensor, rows: torch.Tensor) -> None:
    """Remove in place from each gradient row [F, d] its part along the unit row beside it."""
    gradient -= (gradient * rows).sum(dim=1, keepdim=True) * rows
