"""A batch's pre-activations and latents in training: what an activation takes and gives, and a decoder and a penalty take.

Each comes in two layouts with one face. Dense is [B, F]. Sparse is the n entries that matter: once a row has some dozens of
them, everything but the encoder's product is done at those. Both compute the same, up to the order of float sums.

Legend of shapes: B rows, F latents, d width of what is rebuilt, n entries.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from scopemill.trainer.parallel.shards import Part
from scopemill.trainer.sparse.entries import DecodeAt, Entries, MissesAt


@dataclass(frozen=True)
class Codes(ABC):
    """Latents."""

    values: torch.Tensor  # [B, F] or [n], not negative; carries the gradient
    frequency: torch.Tensor  # [F]: in which share of the rows each latent fires; carries JumpReLU's pseudo-gradient

    @property
    def l0(self) -> torch.Tensor:
        """Mean number of latents that fire."""
        return self.frequency.sum()

    @abstractmethod
    def decode(self, weights: torch.Tensor, first: int = 0) -> torch.Tensor:
        """The sum of the weights' rows [..., d], each as often as its latent says: [B, d]. Latent 0 is the weights' row ``first``."""

    def misses(self, weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is rebuilt less ``target`` [B, d], as the sum of its squares, and itself without a gradient."""
        return missed(self.decode(weights), target)

    @abstractmethod
    def times(self, factors: torch.Tensor) -> torch.Tensor:
        """The values, each times the factor [F] of its latent, in this layout: for sums over all of them."""

    @abstractmethod
    def part(self, start: int, stop: int) -> "Codes":
        """Those of the latents from ``start`` up to ``stop``, numbered from 0."""


class Pre(ABC):
    """Pre-activations; sparse ones are those at the entries that the activation selected."""

    values: torch.Tensor  # [B, F] or [n]; carries the gradient
    rows: int

    @abstractmethod
    def spread(self, per_latent: torch.Tensor) -> torch.Tensor:
        """One number per latent [F], in a shape that goes with ``values``."""

    @abstractmethod
    def codes(self, values: torch.Tensor) -> Codes:
        """Latents of the same layout, whose firing has no gradient."""

    @abstractmethod
    def largest(self, among: torch.Tensor, k: int, part: Part) -> Codes:
        """Of each row those of the latents ``among`` [F] that are positive and among the k largest of all parts."""


@dataclass(frozen=True)
class DenseCodes(Codes):
    def decode(self, weights: torch.Tensor, first: int = 0) -> torch.Tensor:
        return self.values @ weights[first : first + self.values.shape[-1]]

    def times(self, factors: torch.Tensor) -> torch.Tensor:
        return self.values * factors

    def part(self, start: int, stop: int) -> "DenseCodes":
        return replace(self, values=self.values[..., start:stop], frequency=self.frequency[start:stop])


class DensePre(Pre):
    def __init__(self, values: torch.Tensor):
        self.values, self.rows = values, len(values)

    def spread(self, per_latent: torch.Tensor) -> torch.Tensor:
        return per_latent

    def codes(self, values: torch.Tensor) -> DenseCodes:
        return DenseCodes(values, share(values.detach() > 0).to(values.dtype))

    def largest(self, among: torch.Tensor, k: int, part: Part) -> DenseCodes:
        values, index = self.values.where(among, -torch.inf).topk(min(k, part.here), dim=1, sorted=False)
        return self.codes(torch.zeros_like(self.values).scatter(1, index, part.among_largest(values, k).relu()))


@dataclass(frozen=True)
class SparseCodes(Codes):
    entries: Entries

    def decode(self, weights: torch.Tensor, first: int = 0) -> torch.Tensor:
        entries = self.entries if len(weights) == self.entries.width else self.entries.renumbered(first, len(weights))
        return DecodeAt.apply(self.values, weights, entries)

    def misses(self, weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return MissesAt.apply(self.values, weights, target, self.entries)

    def times(self, factors: torch.Tensor) -> torch.Tensor:
        return self.values * factors[self.entries.latents]

    def part(self, start: int, stop: int) -> "SparseCodes":
        entries, inside = self.entries.part(start, stop)
        return SparseCodes(self.values[inside], self.frequency[start:stop], entries)


class SparsePre(Pre):
    """``products`` [B, F] plus ``bias`` [F] are all pre-activations, without gradient; ``at`` makes those at entries differentiable."""

    def __init__(
        self,
        products: torch.Tensor,
        bias: torch.Tensor,
        entries: Entries,
        values: torch.Tensor,
        at: Callable[[Entries, torch.Tensor], torch.Tensor],
    ):
        self.products, self.bias, self.entries, self.rows = products, bias, entries, len(products)
        self._at = at
        self.values = at(entries, values)

    def spread(self, per_latent: torch.Tensor) -> torch.Tensor:
        return per_latent[self.entries.latents]

    def codes(self, values: torch.Tensor) -> SparseCodes:
        return SparseCodes(values, self.entries.share(values.detach() > 0), self.entries)

    def largest(self, among: torch.Tensor, k: int, part: Part) -> SparseCodes:
        numbers = among.nonzero()[:, 0]
        values, place = (self.products[:, numbers] + self.bias[numbers]).topk(min(k, len(numbers)), dim=1, sorted=False)
        values = part.among_largest(values, k)
        entries = Entries.of_equal_rows(numbers[place], values > 0, self.entries.width, self.entries.backend)
        return SparseCodes(self._at(entries, values[values > 0]), entries.share(), entries)


def share(which: torch.Tensor) -> torch.Tensor:
    """In which share [F] of the rows each column of ``which`` [B, F] is true, in float64.

    As many rows at a time as bytes can count: torch would make a matrix of int64 of them all, which took 30 times longer.
    """
    counts = sum(rows.view(torch.uint8).sum(0, dtype=torch.uint8).long() for rows in which.split(255))
    return counts.double() / len(which)


def missed(rebuilt: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is rebuilt [B, d] less the target, as the sum of its squares, and itself without a gradient."""
    error = rebuilt.to(target.dtype) - target
    return error.square().sum(), error.detach()
