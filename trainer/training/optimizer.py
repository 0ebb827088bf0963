"""Adam with beta1 = 0, which needs no first moment, and the unit-norm constraint on the decoder."""

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import is_cut
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sparse.entries import Term
from scopemill.trainer.sparse.kernels.base import Adam
from scopemill.trainer.sparse.kernels.select import backend_for


class Optimizer:
    """theta <- theta - lr * g / (sqrt(v / (1 - beta2^t)) + eps), v <- beta2 v + (1 - beta2) g^2.

    Where the architecture asks for a unit decoder, the gradient's part along each decoder row is removed before Adam
    sees it, and rows are brought back to unit norm after the update (Gemma Scope). ``clip_gradient`` bounds the norm of
    what is left of the whole gradient.

    Where there is a backend, one pass over each row does all of it. A row of weights without a gradient keeps them, as
    beta1 = 0, and of its second moment only the decay is due: ``updated`` says since when, so rows whose latent did not fire
    are not even read.
    """

    def __init__(self, sae: Sae, config: SaeConfig):
        self._sae, self._config = sae, config
        self._unit = {"W_dec"} if sae.keeps_unit_decoder(config) else set()
        parameters = dict(sae.named_parameters())
        self.second_moments = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._backend = backend_for(sae.b_dec)
        by_rows = self._backend is not None and config.clip_gradient is None
        matrices = {name: p for name, p in parameters.items() if p.ndim == 2} if by_rows else {}
        self.updated = {name: torch.zeros(len(p), dtype=torch.int32, device=p.device) for name, p in matrices.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """Apply and clear the gradients. A parameter without one had no part in the loss: its gradient is zero."""
        config, parameters = self._config, dict(self._sae.named_parameters())
        terms = {name: parameter.__dict__.pop("terms", []) for name, parameter in parameters.items()}
        self.updates += 1
        for name, parameter in parameters.items():
            if not is_cut(name, parameter):
                parameter.grad = self._sae.part.gradient(parameter)
            alone = name in self.updated and len(terms[name]) == 1 and parameter.grad is None
            if terms[name] and not alone:
                parameter.grad = self._added_up(terms.pop(name), parameter)
        for name in self._unit - self.updated.keys():
            remove_parallel(parameters[name].grad, parameters[name])
        if config.clip_gradient is not None:
            self._clip(parameters, config.clip_gradient)
        for name, parameter in parameters.items():
            if name in self.updated:
                self._update_rows(name, parameter, terms.get(name, []), learning_rate)
            else:
                self._update(name, parameter, learning_rate)
            parameter.grad = None
        self._sae.activation.after_update()

    def _clip(self, parameters: dict[str, torch.Tensor], limit: float) -> None:
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        here = [gradient for name, gradient in gradients.items() if is_cut(name, gradient)]
        everywhere = [gradient for name, gradient in gradients.items() if not is_cut(name, gradient)]
        squares = self._sae.part.sum(get_total_norm(here) ** 2) + get_total_norm(everywhere) ** 2
        clip_grads_with_norm_(parameters.values(), limit, squares.sqrt())

    def _update(self, name: str, parameter: torch.Tensor, learning_rate: float) -> None:
        config, gradient, v = self._config, parameter.grad, self.second_moments[name]
        v.mul_(config.adam_beta2)
        if gradient is not None:
            v.addcmul_(gradient, gradient, value=1 - config.adam_beta2)
            parameter.addcdiv_(gradient, (v.sqrt() / self._correction).add_(config.adam_epsilon), value=-learning_rate)
        if name in self._unit:
            parameter /= parameter.norm(dim=1, keepdim=True)

    def _update_rows(self, name: str, parameter: torch.Tensor, terms: list[Term], learning_rate: float) -> None:
        config, unit = self._config, name in self._unit
        adam = Adam(self.updates, learning_rate, config.adam_beta2, config.adam_epsilon, self._correction, unit)
        state = parameter.detach(), self.second_moments[name], self.updated[name], adam
        if parameter.grad is not None:
            self._backend.update_dense(parameter.grad.contiguous(), *state)
        elif terms:
            self._backend.update_rows(*terms[0], *state)

    def _added_up(self, terms: list[Term], parameter: torch.Tensor) -> torch.Tensor:
        """The gradient [F, d] that terms stand for, and what was there before."""
        total = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
        for term in terms:
            self._backend.gradient(*term, total)
        return total

    @property
    def _correction(self) -> float:
        return (1 - self._config.adam_beta2**self.updates) ** 0.5


def remove_parallel(gradient: torch.Tensor, rows: torch.Tensor) -> None:
    """Remove in place from each gradient row [F, d] its part along the unit row beside it."""
    gradient -= (gradient * rows).sum(dim=1, keepdim=True) * rows
