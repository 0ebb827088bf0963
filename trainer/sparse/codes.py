"""Hold a batch's pre-activations and latents in training, dense or sparse.

An activation takes pre-activations and returns latents; a decoder and a penalty take latents. The dense layout is [B, F]. The sparse
layout is the n entries on which loss and gradients depend: once a row has some dozens of them, everything but the encoder's product
is computed at entries only. Both layouts compute the same, up to the order of float sums.

Legend of shapes: B rows, F latents, d width of the reconstruction, n entries.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sparse.entries import Entries
from scopemill.trainer.sparse.gradients import SparseGradients
from scopemill.trainer.sparse.operations import DecodeAt, ReconstructionErrorAt


@dataclass(frozen=True)
class Codes(ABC):
    """Hold latents."""

    values: torch.Tensor  # [B, F] or [n], not negative; carries the gradient
    frequency: torch.Tensor  # [F]: the share of rows in which each latent fires; carries JumpReLU's pseudo-gradient

    @property
    def l0(self) -> torch.Tensor:
        """Return the mean number of latents that fire in a row."""
        return self.frequency.sum()

    @abstractmethod
    def decode(self, weights: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Return [B, d]: the sum over latents of value times weight row [F, d].

        Latent 0 has the weight row ``first``.
        """

    def reconstruction_error(self, weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of squared errors against ``target``, and the error.

        Target and error are [B, d]; the error has no gradient.
        """
        return reconstruction_error(self.decode(weights), target)

    @abstractmethod
    def times(self, factors: torch.Tensor) -> torch.Tensor:
        """Return the values, each times the factor [F] of its latent, in this layout."""

    @abstractmethod
    def slice(self, start: int, stop: int) -> "Codes":
        """Return the latents ``start`` to ``stop``, numbered from 0."""


class Pre(ABC):
    """Hold pre-activations; in the sparse layout those at the entries that the activation selected."""

    values: torch.Tensor  # [B, F] or [n]; carries the gradient
    rows: int

    @abstractmethod
    def spread(self, per_latent: torch.Tensor) -> torch.Tensor:
        """Return one number per latent [F] in a shape that broadcasts with ``values``."""

    @abstractmethod
    def codes(self, values: torch.Tensor) -> Codes:
        """Return latents of the same layout, whose frequency has no gradient."""

    @abstractmethod
    def largest(self, among: torch.Tensor, k: int, shard: LatentShard) -> Codes:
        """Return the positive ones of the k largest of each row, over all ranks.

        Only the latents ``among`` [F] count.
        """


@dataclass(frozen=True)
class DenseCodes(Codes):
    """Hold latents as [B, F]."""

    def decode(self, weights: torch.Tensor, first: int = 0) -> torch.Tensor:
        return self.values @ weights[first : first + self.values.shape[-1]]

    def times(self, factors: torch.Tensor) -> torch.Tensor:
        return self.values * factors

    def slice(self, start: int, stop: int) -> "DenseCodes":
        return replace(self, values=self.values[..., start:stop], frequency=self.frequency[start:stop])


class DensePre(Pre):
    """Hold pre-activations as [B, F]."""

    def __init__(self, values: torch.Tensor):
        self.values, self.rows = values, len(values)

    def spread(self, per_latent: torch.Tensor) -> torch.Tensor:
        return per_latent

    def codes(self, values: torch.Tensor) -> DenseCodes:
        return DenseCodes(values, share(values.detach() > 0).to(values.dtype))

    def largest(self, among: torch.Tensor, k: int, shard: LatentShard) -> DenseCodes:
        values, index = self.values.where(among, -torch.inf).topk(min(k, shard.local_width), dim=1, sorted=False)
        return self.codes(torch.zeros_like(self.values).scatter(1, index, shard.global_top_k(values, k).relu()))


@dataclass(frozen=True)
class SparseCodes(Codes):
    """Hold latents at entries [n]."""

    entries: Entries
    gradients: SparseGradients | None  # collects the decoder's; None: autograd gets dense ones

    def decode(self, weights: torch.Tensor, first: int = 0) -> torch.Tensor:
        entries = self.entries if len(weights) == self.entries.width else self.entries.renumbered(first, len(weights))
        return DecodeAt.apply(self.values, weights, entries, self.gradients)

    def reconstruction_error(self, weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ReconstructionErrorAt.apply(self.values, weights, target, self.entries, self.gradients)

    def times(self, factors: torch.Tensor) -> torch.Tensor:
        return self.values * factors[self.entries.latents]

    def slice(self, start: int, stop: int) -> "SparseCodes":
        entries, inside = self.entries.slice(start, stop)
        return SparseCodes(self.values[inside], self.frequency[start:stop], entries, self.gradients)


class SparsePre(Pre):
    """Hold pre-activations at entries [n].

    ``products`` [B, F] plus ``bias`` [F] are all pre-activations, without a gradient; ``encoder_at`` makes those at entries
    differentiable.
    """

    def __init__(
        self,
        products: torch.Tensor,
        bias: torch.Tensor,
        entries: Entries,
        values: torch.Tensor,
        encoder_at: Callable[[Entries, torch.Tensor], torch.Tensor],
        gradients: SparseGradients | None,
    ):
        self.products, self.bias, self.entries, self.gradients, self.rows = products, bias, entries, gradients, len(products)
        self._encoder_at = encoder_at
        self.values = encoder_at(entries, values)

    def spread(self, per_latent: torch.Tensor) -> torch.Tensor:
        return per_latent[self.entries.latents]

    def codes(self, values: torch.Tensor) -> SparseCodes:
        return SparseCodes(values, self.entries.share(values.detach() > 0), self.entries, self.gradients)

    def largest(self, among: torch.Tensor, k: int, shard: LatentShard) -> SparseCodes:
        numbers = among.nonzero()[:, 0]
        values, place = (self.products[:, numbers] + self.bias[numbers]).topk(min(k, len(numbers)), dim=1, sorted=False)
        values = shard.global_top_k(values, k)
        entries = Entries.of_equal_rows(numbers[place], values > 0, self.entries.width, self.entries.backend)
        return SparseCodes(self._encoder_at(entries, values[values > 0]), entries.share(), entries, self.gradients)


def share(which: torch.Tensor) -> torch.Tensor:
    """Return the share [F] of rows in which each column of ``which`` is true.

    ``which`` is [B, F], the share float64.
    """
    # As many rows at a time as bytes can count: torch would make a matrix of int64 of them all, which took 30 times longer.
    counts = sum(rows.view(torch.uint8).sum(0, dtype=torch.uint8).long() for rows in which.split(255))
    return counts.double() / len(which)


def reconstruction_error(reconstruction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of squared errors of a reconstruction, and the error.

    Reconstruction and error are [B, d]; the error has no gradient.
    """
    error = reconstruction.to(target.dtype) - target
    return error.square().sum(), error.detach()
