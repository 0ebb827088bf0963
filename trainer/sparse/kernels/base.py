"""Define what the sparse numerics need from a device.

Legend of shapes: B rows, F latents, d width, n entries. An entry is a place [row, latent] of the batch on which loss or gradients
depend. Entries are kept by rows, row i having ``latents[starts[i]:starts[i + 1]]``, and for sums over rows also by latents
(`Columns`). Tensors are float32 and indices int32 or int64, all on the backend's device. Every sum has a fixed order, so a repeated
run gives the same bits.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch


class Columns(NamedTuple):
    """Hold entries by latents, in the order of their rows.

    Latent f has entries ``starts[f]`` to ``starts[f + 1]``.
    """

    starts: torch.Tensor  # [F + 1], int64
    rows: torch.Tensor  # [n], int32
    order: torch.Tensor  # [n]: the position of each among the entries by rows


class Found(NamedTuple):
    """Hold entries by rows, with their values."""

    starts: torch.Tensor  # [B + 1], int64
    latents: torch.Tensor  # [n], int32
    values: torch.Tensor  # [n]


class Adam(NamedTuple):
    """Describe one update of a matrix of weights: see `Optimizer`."""

    update: int  # its number, from 1
    rate: float
    beta1: float
    beta2: float
    epsilon: float
    first_correction: float  # 1 - beta1^update
    correction: float  # sqrt(1 - beta2^update)
    unit: bool  # whether rows are of unit norm, and stay so


class Moments(NamedTuple):
    """Hold the moments of a matrix of weights [F, d]."""

    first: torch.Tensor  # [F, d], or [F, 0] where beta1 = 0 needs none
    second: torch.Tensor  # [F, d]


class Backend(ABC):
    """Compute on one kind of device."""

    def begin_step(self) -> None:  # noqa: B027, as most have nothing to prepare
        """Prepare the calling thread for a training step."""

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a matrix in the precision of products.

        `scan` and `largest` read products of such matrices.
        """
        return tensor

    def moments(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums over rows in float64: of each column, and of all squares.

        The rows are [B, d], the sums of columns [d].
        """
        return moments(rows)

    @abstractmethod
    def scan(self, products: torch.Tensor, bias: torch.Tensor, lower: torch.Tensor, max_entries: int) -> Found | None:
        """Return the entries of products [B, F] plus bias [F] above ``lower`` [F].

        Returns None if there are more than about ``max_entries``. Where rounding decides, an entry may be in or out.
        """

    @abstractmethod
    def largest(self, products: torch.Tensor, bias: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents and values [B, k] of the k largest in each row.

        The rows are products [B, F] plus bias [F]; the k come in any order. Where rounding decides, either may be taken.
        """

    @abstractmethod
    def by_latents(self, starts: torch.Tensor, latents: torch.Tensor, width: int) -> Columns:
        """Return entries, given by rows, by latents."""

    @abstractmethod
    def sum_by_latent(self, columns: Columns, values: torch.Tensor) -> torch.Tensor:
        """Return the sum [F] of each latent's values [n]; values are by rows."""

    @abstractmethod
    def decode(self, starts: torch.Tensor, latents: torch.Tensor, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return [B, d]: the sum over a row's entries of value times weight row.

        Values are [n], weights [F, d].
        """

    @abstractmethod
    def products(self, starts: torch.Tensor, latents: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return [n]: rows [B, d] times weight rows [F, d], at the entries only."""

    @abstractmethod
    def reconstruction_error(
        self, starts: torch.Tensor, latents: torch.Tensor, values: torch.Tensor, weights: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return error, squared errors of the rows, and products with the weights.

        The error is [B, d], its squares summed over d are [B], and its products are at the entries [n]. The error is `decode` less the
        target.
        """

    @abstractmethod
    def gradient(self, columns: Columns, factors: torch.Tensor, matrix: torch.Tensor, total: torch.Tensor) -> None:
        """Add to total [F, d] the sum over a latent's entries of factor times row.

        Factors [n] are by rows, and the rows are of a matrix [B, d].
        """

    @abstractmethod
    def update_rows(
        self,
        columns: Columns,
        factors: torch.Tensor,
        matrix: torch.Tensor,
        weights: torch.Tensor,
        moments: Moments,
        updated: torch.Tensor,
        adam: Adam,
    ) -> None:
        """Update weight rows [F, d] by Adam.

        These are the rows that have entries; with first moments all rows.

        Their gradient is not written out (see `gradient`). With beta1 = 0 a row without a gradient keeps its weights, and of its second
        moments only the decay is due. ``updated`` [F] is the last update of each row; missed decay is applied when the row has a
        gradient again. With beta1 > 0 a row without a gradient moves on until its first moments have faded.
        """

    @abstractmethod
    def update_dense(self, gradients: torch.Tensor, weights: torch.Tensor, moments: Moments, updated: torch.Tensor, adam: Adam) -> None:
        """Update every weight row [F, d] by Adam from dense gradients [F, d].

        The gradients may be overwritten.
        """


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sums over rows in float64: of each column, and of all squares.

    The rows are [B, d], the sums of columns [d].
    """
    return rows.sum(0, dtype=torch.float64), torch.linalg.vector_norm(rows, dtype=torch.float64) ** 2  # squares themselves are float64


def offsets(counts: torch.Tensor) -> torch.Tensor:
    """Return where each of n consecutive runs starts, and where the last stops.

    The result is [n + 1], int64.
    """
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
