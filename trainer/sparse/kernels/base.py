"""The seam between the sparse way through a training step and the machine that it runs on.

Legend of shapes: B rows, F latents, d width, n entries. An entry is a place [row, latent] of the batch that matters. Entries
are kept by rows, row i having ``latents[starts[i]:starts[i + 1]]``, and for sums over rows by latents as well (`Columns`).
Tensors are float32 and indices int32 or int64, all on the backend's device. Every sum has an order of its own, so that a run
that is repeated gives the same bits.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch


class Columns(NamedTuple):
    """Entries by latents: latent f has those from ``starts[f]`` up to ``starts[f + 1]``, in the order of their rows."""

    starts: torch.Tensor  # [F + 1], int64
    rows: torch.Tensor  # [n], int32
    order: torch.Tensor  # [n]: where each lies among the entries by rows


class Found(NamedTuple):
    """Entries by rows and what was found there."""

    starts: torch.Tensor  # [B + 1], int64
    latents: torch.Tensor  # [n], int32
    values: torch.Tensor  # [n]


class Adam(NamedTuple):
    """One update of a matrix of weights: see `Optimizer`."""

    update: int  # its number, from 1
    rate: float
    beta2: float
    epsilon: float
    correction: float  # sqrt(1 - beta2^update)
    unit: bool  # whether rows are of unit norm, and stay so


class Backend(ABC):
    def begin_step(self) -> None:  # noqa: B027, as most have nothing to prepare
        """The calling thread is about to take a training step."""

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """A matrix in the precision that products are to be taken in. Products of such are what `scan` and `largest` read."""
        return tensor

    def moments(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over rows [B, d] in float64: of each column [d], and of all squares."""
        return moments(rows)

    @abstractmethod
    def scan(self, products: torch.Tensor, bias: torch.Tensor, lower: torch.Tensor, max_entries: int) -> Found | None:
        """The entries of products [B, F] plus bias [F] above ``lower`` [F]. None if there are more than about ``max_entries``.

        Where rounding decides, an entry may be in or out.
        """

    @abstractmethod
    def largest(self, products: torch.Tensor, bias: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k largest of each row of products [B, F] plus bias [F]: latents and values, [B, k], in no particular order.

        Where rounding decides, either may be taken.
        """

    @abstractmethod
    def by_latents(self, starts: torch.Tensor, latents: torch.Tensor, width: int) -> Columns:
        """Entries by rows, ordered by latents."""

    @abstractmethod
    def sum_by_latent(self, columns: Columns, values: torch.Tensor) -> torch.Tensor:
        """The sums [F] of the values [n], by rows, of each latent."""

    @abstractmethod
    def decode(self, starts: torch.Tensor, latents: torch.Tensor, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[B, d]: the sum of the weights' rows [F, d] at each row's entries, each times its value [n]."""

    @abstractmethod
    def products(self, starts: torch.Tensor, latents: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[n]: rows [B, d] times weights [F, d], at the entries only."""

    @abstractmethod
    def rebuild(
        self, starts: torch.Tensor, latents: torch.Tensor, values: torch.Tensor, weights: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`decode` and `products` at once: the error [B, d], which is what is rebuilt less the target, its squares summed over d [B],
        and error times weights at the entries [n]."""

    @abstractmethod
    def gradient(self, columns: Columns, factors: torch.Tensor, matrix: torch.Tensor, total: torch.Tensor) -> None:
        """total [F, d] += the sum over each latent's entries of its factor [n], by rows, times the matrix's row [B, d]."""

    @abstractmethod
    def update_rows(
        self,
        columns: Columns,
        factors: torch.Tensor,
        matrix: torch.Tensor,
        weights: torch.Tensor,
        moments: torch.Tensor,
        updated: torch.Tensor,
        adam: Adam,
    ) -> None:
        """Adam on the weights' rows [F, d] that have entries; their gradient, as of `gradient`, is never written.

        With beta1 = 0 a row without a gradient keeps its weights, and of its second ``moments`` only the decay is missed:
        ``updated`` [F] says since which update, and it is made up for when the row has a gradient again.
        """

    @abstractmethod
    def update_dense(
        self, gradients: torch.Tensor, weights: torch.Tensor, moments: torch.Tensor, updated: torch.Tensor, adam: Adam
    ) -> None:
        """The same for gradients [F, d] of every row, which it may overwrite."""


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over rows [B, d] in float64: of each column [d], and of all squares."""
    return rows.sum(0, dtype=torch.float64), torch.linalg.vector_norm(rows, dtype=torch.float64) ** 2  # squares themselves are float64


def offsets(counts: torch.Tensor) -> torch.Tensor:
    """Where each of n runs begins that follow one another, and where the last ends: [n + 1], int64."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
