"""Update an SAE by Adam, its decoder rows at unit norm."""

from collections.abc import Mapping

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import is_sharded
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sparse.gradients import SparseGradients, Term
from scopemill.trainer.sparse.kernels.base import Adam, Moments
from scopemill.trainer.sparse.kernels.select import backend_for


class Optimizer:
    """Update an SAE by Adam.

    theta <- theta - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps), m <- beta1 m + (1 - beta1) g,
    v <- beta2 v + (1 - beta2) g^2. With beta1 = 0 that is g in place of m, and no first moment is kept. ``weight_decay`` first
    multiplies matrices by 1 - lr * decay (AdamW, arXiv 1711.05101), except where rows are kept at unit norm.

    Where the architecture asks for a unit decoder, the gradient component parallel to each decoder row is removed before Adam, and
    rows are normalised after the update (Gemma Scope). ``clip_gradient`` bounds the global gradient norm after that projection.
    With ``tied_weights`` the encoder's gradient is added to the decoder's, and the encoder copies the decoder after the update.

    With sparse kernels one pass over each row does all of it. With beta1 = 0 a row without a gradient keeps its weights, and of its
    second moment only the decay is due: ``updated`` holds the row's last update, so rows whose latent did not fire are not even read.
    """

    def __init__(self, sae: Sae, config: SaeConfig):
        self._sae, self._config = sae, config
        self._unit = {"W_dec"} if sae.keeps_unit_decoder(config) else set()
        parameters = self._parameters()
        self.first_moments = {name: torch.zeros_like(p) for name, p in parameters.items()} if config.adam_beta1 else {}
        self.second_moments = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._backend = backend_for(sae.b_dec)
        by_rows = self._backend is not None and config.clip_gradient is None
        matrices = {name: p for name, p in parameters.items() if p.ndim == 2} if by_rows else {}
        self.updated = {name: torch.zeros(len(p), dtype=torch.int32, device=p.device) for name, p in matrices.items()}
        self.updates = 0

    def clear_rows(self, name: str, rows: torch.Tensor) -> None:
        """Set a parameter's moments to zero in the rows that a mask [F] names."""
        for moments in (self.first_moments, self.second_moments):
            if name in moments:
                moments[name][rows] = 0

    @torch.no_grad()
    def update(self, learning_rate: float, gradients: SparseGradients | None = None) -> None:
        """Apply the dense gradients and the collected sparse ones, and clear the dense ones.

        A parameter without a gradient had no part in the loss: its gradient is zero.
        """
        config, parameters = self._config, self._parameters()
        self.updates += 1
        if config.tied_weights:
            self._tie_gradients(gradients)
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
            if config.weight_decay and parameter.ndim == 2 and name not in self._unit:
                parameter.mul_(1 - learning_rate * config.weight_decay)
            if name in self.updated:
                self._update_rows(name, parameter, single.get(name), learning_rate)
            else:
                self._update(name, parameter, learning_rate)
            parameter.grad = None
        if config.tied_weights:
            self._sae.W_enc.copy_(self._sae.W_dec)
        self._sae.activation.after_update()

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Return the parameters that Adam updates; a tied encoder is a copy of the decoder."""
        return {name: p for name, p in self._sae.named_parameters() if not (self._config.tied_weights and name == "W_enc")}

    def _tie_gradients(self, gradients: SparseGradients | None) -> None:
        """Add the gradient of the encoder to that of the decoder."""
        encoder, decoder = self._sae.W_enc, self._sae.W_dec
        if encoder.grad is not None:
            decoder.grad = encoder.grad if decoder.grad is None else decoder.grad + encoder.grad
            encoder.grad = None
        if gradients is not None:
            for term in gradients.of(encoder):
                gradients.add(decoder, term)

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
        direction = gradient
        if (m := self.first_moments.get(name)) is not None:
            m.mul_(config.adam_beta1)
            if gradient is not None:
                m.add_(gradient, alpha=1 - config.adam_beta1)
            direction = m / self._first_correction
        if direction is not None:
            parameter.addcdiv_(direction, (v.sqrt() / self._correction).add_(config.adam_epsilon), value=-learning_rate)
        if name in self._unit:
            parameter /= parameter.norm(dim=1, keepdim=True)

    def _update_rows(self, name: str, parameter: torch.Tensor, term: Term | None, learning_rate: float) -> None:
        config, backend = self._config, self._backend
        assert backend is not None, "only parameters with a backend are updated by rows"
        betas, corrections = (config.adam_beta1, config.adam_beta2), (self._first_correction, self._correction)
        adam = Adam(self.updates, learning_rate, *betas, config.adam_epsilon, *corrections, name in self._unit)
        weights, updated, second = parameter.detach(), self.updated[name], self.second_moments[name]
        moments = Moments(self.first_moments[name] if config.adam_beta1 else second.new_empty(len(second), 0), second)
        if term:
            backend.update_rows(term.entries.columns, term.factors, term.matrix, weights, moments, updated, adam)
        elif parameter.grad is not None:
            backend.update_dense(parameter.grad.contiguous(), weights, moments, updated, adam)
        elif config.adam_beta1:  # what earlier gradients set in motion goes on
            backend.update_dense(torch.zeros_like(weights), weights, moments, updated, adam)

    @property
    def _first_correction(self) -> float:
        return 1 - self._config.adam_beta1**self.updates

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
