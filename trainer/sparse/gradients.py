"""Collect gradients of weights as sums over entries.

The optimiser adds them up row by row.

Legend of shapes: B rows, F latents, d width, n entries.
"""

from dataclasses import dataclass

import torch

from scopemill.trainer.sparse.entries import Entries


@dataclass(frozen=True)
class Term:
    """Hold one summand of the gradient of weights [F, d].

    It is, per latent, the sum over its entries of factor times matrix row.
    """

    entries: Entries
    factors: torch.Tensor  # [n]
    matrix: torch.Tensor  # [B, d]

    def add_to(self, total: torch.Tensor) -> None:
        """Add this summand to a gradient [F, d], in place."""
        self.entries.backend.gradient(self.entries.columns, self.factors, self.matrix, total)


class SparseGradients:
    """Collect the terms of each parameter's gradient during one step's backward passes."""

    def __init__(self) -> None:
        self._terms: dict[torch.Tensor, list[Term]] = {}  # by parameter; a tensor's hash is its identity

    def add(self, parameter: torch.Tensor, term: Term) -> None:
        """Add a term to a parameter's gradient."""
        self._terms.setdefault(parameter, []).append(term)

    def of(self, parameter: torch.Tensor) -> list[Term]:
        """Return the terms of a parameter's gradient."""
        return self._terms.get(parameter, [])


def weight_gradient(
    gradients: SparseGradients | None, weights: torch.Tensor, entries: Entries, factors: torch.Tensor, matrix: torch.Tensor
) -> torch.Tensor | None:
    """Add a term to the collector and return None.

    Without a collector, return the dense gradient [F, d] for autograd.
    """
    if not weights.requires_grad:
        return None
    term = Term(entries, factors.detach().contiguous(), matrix.contiguous())
    if gradients is not None:
        gradients.add(weights, term)
        return None
    total = torch.zeros_like(weights)
    term.add_to(total)
    return total
