"""Update an SAE by Adam with beta1 = 0, its decoder rows at unit norm."""

from collections.abc import Mapping

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import is_sharded
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sparse.gradients import SparseGradients, Term
from scopemill.trainer.sparse.kernels.base import Adam
from scopemill.trainer.sparse.kernels.select import backend_for


class Optimizer:
    """Update an SAE by Adam with beta1 = 0, which needs no first moment.

    theta <- theta - lr * g / (sqrt(v / (1 - beta2^t)) + eps), v <- beta2 v + (1 - beta2) g^2.

    Where the architecture asks for a unit decoder, the gradient component parallel to each decoder row is removed before Adam, and
    rows are normalised after the update (Gemma Scope). ``clip_gradient`` bounds the global gradient norm after that projection.

    With sparse kernels one pass over each row does all of it. With beta1 = 0 a row without a gradient keeps its weights, and of its
    second moment only the decay is due: ``updated`` holds the row's last update, so rows whose latent did not fire are not even read.
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
    def update(self, learning_rate: float, gradients: SparseGradients | None = None) -> None:
        """Apply the dense gradients and the collected sparse ones, and clear the dense ones.

        A parameter without a gradient had no part in the loss: its gradient is zero.
        """
        config, parameters = self._config, dict(self._sae.named_parameters())
        self.updates += 1
        single: dict[str, Term] = {}  # gradients of one term, which need not be written out
        for name, parameter in parameters.items():
            if not is_sharded(name, parameter):
                parameter.grad = self._sae.shard.replicated_gradient(parameter)
            terms = gradients.of(parameter) if gradients else []
            if name in self.updated and len(terms) == 1 and parameter.grad is None:
                single[name] = terms[0]
            elif terms:
                parameter.grad = _summed(terms, parameter)
        for name in self._unit - self.updated.keys():
            if (gradient := parameters[name].grad) is not None:
                remove_parallel(gradient, parameters[name])
        if config.clip_gradient is not None:
            self._clip(parameters, config.clip_gradient)
        for name, parameter in parameters.items():
            if name in self.updated:
                self._update_rows(name, parameter, single.get(name), learning_rate)
            else:
                self._update(name, parameter, learning_rate)
            parameter.grad = None
        self._sae.activation.after_update()

    def _clip(self, parameters: Mapping[str, torch.Tensor], limit: float) -> None:
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        sharded = [gradient for name, gradient in gradients.items() if is_sharded(name, gradient)]
        replicated = [gradient for name, gradient in gradients.items() if not is_sharded(name, gradient)]
        squares = self._sae.shard.all_reduce(get_total_norm(sharded) ** 2) + get_total_norm(replicated) ** 2
        clip_grads_with_norm_(parameters.values(), limit, squares.sqrt())

    def _update(self, name: str, parameter: torch.Tensor, learning_rate: float) -> None:
        config, gradient, v = self._config, parameter.grad, self.second_moments[name]
        v.mul_(config.adam_beta2)
        if gradient is not None:
            v.addcmul_(gradient, gradient, value=1 - config.adam_beta2)
            parameter.addcdiv_(gradient, (v.sqrt() / self._correction).add_(config.adam_epsilon), value=-learning_rate)
        if name in self._unit:
            parameter /= parameter.norm(dim=1, keepdim=True)

    def _update_rows(self, name: str, parameter: torch.Tensor, term: Term | None, learning_rate: float) -> None:
        config, backend = self._config, self._backend
        assert backend is not None, "only parameters with a backend are updated by rows"
        adam = Adam(self.updates, learning_rate, config.adam_beta2, config.adam_epsilon, self._correction, name in self._unit)
        weights, moments, updated = parameter.detach(), self.second_moments[name], self.updated[name]
        if parameter.grad is not None:
            backend.update_dense(parameter.grad.contiguous(), weights, moments, updated, adam)
        elif term:
            backend.update_rows(term.entries.columns, term.factors, term.matrix, weights, moments, updated, adam)

    @property
    def _correction(self) -> float:
        return (1 - self._config.adam_beta2**self.updates) ** 0.5


def _summed(terms: list[Term], parameter: torch.Tensor) -> torch.Tensor:
    """Return the sum [F, d] of the terms and of the parameter's dense gradient."""
    total = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
    for term in terms:
        term.add_to(total)
    return total


def remove_parallel(gradient: torch.Tensor, rows: torch.Tensor) -> None:
    """Remove in place each gradient row's component parallel to the unit row beside it.

    The gradient is [F, d].
    """
    gradient -= (gradient * rows).sum(dim=1, keepdim=True) * rows
