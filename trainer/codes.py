"""A batch's pre-activations and latents in training: what an activation takes and gives, and a decoder and a penalty take.

Each comes in two layouts with one face. Dense is [B, F]. Sparse is the n entries that matter: once a row has some dozens of
them, everything but the encoder's product is done at those, and gradients of weights stay sums over entries (`Term`) until
the optimiser adds them up row by row. Both compute the same, up to the order of float sums.

Legend of shapes: B rows, F latents, d width of what is rebuilt, n entries.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from scopemill.trainer import kernels


@dataclass(frozen=True)
class Codes(ABC):
    """Latents."""

    values: torch.Tensor  # [B, F] or [n], not negative; carries the gradient
    frequency: torch.Tensor  # [F]: in which share of the rows each latent fires; carries JumpReLU's pseudo-gradient

    @property
    def l0(self) -> torch.Tensor:
        """Mean number of latents that fire."""
        return self.frequency.sum()

    @property
    def density(self) -> float:
        """The share of all places [row, latent] that fires."""
        return self.l0.item() / len(self.frequency)

    @abstractmethod
    def decode(self, weights: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The sum of the weights' rows [F, d], each as often as its latent says: [B, d]. Only of latents ``start`` to ``stop``."""

    def misses(self, weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is rebuilt less ``target`` [B, d], as the sum of its squares, and itself without a gradient."""
        error = self.decode(weights).to(target.dtype) - target
        return error.square().sum(), error.detach()

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
    def largest(self, among: torch.Tensor, k: int) -> Codes:
        """Of each row the k largest of the latents ``among`` [F], where they are positive."""


@dataclass(frozen=True)
class DenseCodes(Codes):
    def decode(self, weights: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self.values[..., start:stop] @ weights[start:stop]

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
        return DenseCodes(values, (values.detach() > 0).sum(0).to(values.dtype) / self.rows)

    def largest(self, among: torch.Tensor, k: int) -> DenseCodes:
        values, index = self.values.where(among, -torch.inf).topk(k, dim=1, sorted=False)
        return self.codes(torch.zeros_like(self.values).scatter(1, index, values.relu()))


@dataclass(frozen=True)
class Entries:
    """Places [row, latent] of a batch, by rows: row i has ``latents[starts[i]:starts[i + 1]]``."""

    starts: np.ndarray  # [B + 1]
    latents: np.ndarray  # [n], int32
    width: int

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def index(self) -> torch.Tensor:
        return torch.from_numpy(self.latents)

    @cached_property
    def columns(self) -> kernels.Columns:
        return kernels.Columns(*kernels.by_latents(self.starts, self.latents, self.width))

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Sums [F] of the values [n] of each latent."""
        return values.new_zeros(self.width).index_add_(0, self.index, values)

    def share(self, fires: torch.Tensor | None = None) -> torch.Tensor:
        """In which share of the rows each latent has an entry [F], or one that ``fires`` [n]."""
        counts = np.bincount(self.latents if fires is None else self.latents[fires.numpy()], minlength=self.width)
        return torch.from_numpy(counts).float() / self.rows

    def part(self, start: int, stop: int) -> tuple["Entries", torch.Tensor]:
        """Those of the latents from ``start`` up to ``stop``, still under their own numbers, and where they lie among all."""
        mask = (self.latents >= start) & (self.latents < stop)
        before = np.concatenate([[0], np.cumsum(mask)])
        return Entries(before[self.starts], self.latents[mask], self.width), torch.from_numpy(np.flatnonzero(mask))

    def renumbered(self, start: int, stop: int) -> "Entries":
        """With the latents from ``start`` up to ``stop``, which are all there are, numbered from 0."""
        return Entries(self.starts, self.latents - np.int32(start), stop - start)

    @staticmethod
    def of_equal_rows(latents: torch.Tensor, keep: torch.Tensor, width: int) -> "Entries":
        """From as many candidates in each row [B, k], those that ``keep`` [B, k] says."""
        starts = np.concatenate([[0], np.cumsum(keep.sum(1).numpy())])
        return Entries(starts, latents[keep].to(torch.int32).numpy(), width)


class Term(NamedTuple):
    """Part of the gradient of weights [F, d]: for each latent the sum over its entries of factor times row of the matrix."""

    columns: kernels.Columns
    factors: np.ndarray  # [n], by rows
    matrix: np.ndarray  # [B, d]


def give(weights: torch.Tensor, entries: Entries, factors: torch.Tensor, matrix: torch.Tensor) -> None:
    """Hand a term to a parameter, for the optimiser."""
    if weights.requires_grad:
        term = Term(entries.columns, factors.contiguous().numpy(), matrix.contiguous().numpy())
        weights.terms = [*getattr(weights, "terms", []), term]


@dataclass(frozen=True)
class SparseCodes(Codes):
    entries: Entries

    def decode(self, weights: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        if start == 0 and stop in (None, self.entries.width):
            return _Decode.apply(self.values, weights, self.entries)
        entries, where = self.entries.part(start, stop)
        return _Decode.apply(self.values[where], weights, entries)

    def misses(self, weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _Misses.apply(self.values, weights, target, self.entries)

    def times(self, factors: torch.Tensor) -> torch.Tensor:
        return self.values * factors[self.entries.index]

    def part(self, start: int, stop: int) -> "SparseCodes":
        entries, where = self.entries.part(start, stop)
        return SparseCodes(self.values[where], self.frequency[start:stop], entries.renumbered(start, stop))


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weights, entries):
        ctx.save_for_backward(values, weights)
        ctx.entries = entries
        out = values.new_empty(entries.rows, weights.shape[1])
        kernels.decode(entries.starts, entries.latents, values.numpy(), weights.detach().numpy(), out.numpy())
        return out

    @staticmethod
    def backward(ctx, d_out):
        values, weights = ctx.saved_tensors
        entries, d_out = ctx.entries, d_out.contiguous()
        d_values = torch.empty_like(values)
        kernels.products(entries.starts, entries.latents, d_out.numpy(), weights.detach().numpy(), d_values.numpy())
        give(weights, entries, values, d_out)
        return d_values, None, None


class _Misses(torch.autograd.Function):
    """The gradient is known up to a factor once the error is, so it is found while the weights are at hand."""

    @staticmethod
    def forward(ctx, values, weights, target, entries):
        error, squares, d_values = torch.empty_like(target), target.new_empty(entries.rows), torch.empty_like(values)
        kernels.rebuild(
            entries.starts, entries.latents, values.numpy(), weights.detach().numpy(), target.contiguous().numpy(), error.numpy(),
            squares.numpy(), d_values.numpy(),
        )  # fmt: skip
        ctx.save_for_backward(values, weights, error, d_values)
        ctx.entries = entries
        ctx.mark_non_differentiable(error)
        return squares.sum(), error

    @staticmethod
    def backward(ctx, d_sum, _):
        values, weights, error, d_values = ctx.saved_tensors
        d_out = 2 * d_sum * error
        give(weights, ctx.entries, values, d_out)
        return 2 * d_sum * d_values, None, -d_out, None


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
        return per_latent[self.entries.index]

    def codes(self, values: torch.Tensor) -> SparseCodes:
        return SparseCodes(values, self.entries.share(values.detach() > 0), self.entries)

    def largest(self, among: torch.Tensor, k: int) -> SparseCodes:
        numbers = among.nonzero()[:, 0]
        values, place = (self.products[:, numbers] + self.bias[numbers]).topk(k, dim=1, sorted=False)
        entries = Entries.of_equal_rows(numbers[place], values > 0, self.entries.width)
        return SparseCodes(self._at(entries, values[values > 0]), entries.share(), entries)


class EncodeAt(torch.autograd.Function):
    """Pre-activations that are known already, [n], as a function of the encoder: x W_enc^T + b_enc at the entries.

    ``x`` [B, d] is what the encoder took, with ``b_dec`` subtracted where there is one.
    """

    @staticmethod
    def forward(ctx, values, b_enc, b_dec, weights, x, entries):
        ctx.save_for_backward(weights, x)
        ctx.entries, ctx.has_bias, ctx.centred = entries, b_enc is not None, b_dec is not None
        return values.clone()

    @staticmethod
    def backward(ctx, d_values):
        weights, x = ctx.saved_tensors
        give(weights, ctx.entries, d_values, x)
        d_bias = ctx.entries.add_up(d_values) if ctx.has_bias or ctx.centred else None
        d_b_dec = -(d_bias @ weights.detach()) if ctx.centred else None
        return None, d_bias if ctx.has_bias else None, d_b_dec, None, None, None


def row_bounds(rows: int) -> np.ndarray:
    """Where each of torch's threads begins in a batch of so many rows, and where the last ends."""
    return np.linspace(0, rows, torch.get_num_threads() + 1).astype(np.int64)


def scan(products: torch.Tensor, bias: torch.Tensor, lower: torch.Tensor, at_most: int) -> tuple[Entries, torch.Tensor] | None:
    """The entries of [B, F] products plus bias [F] that lie above ``lower`` [F], and their values. None if there are more than about
    ``at_most``. Where rounding decides, an entry may be in or out; who selects must not depend on it."""
    pre, bounds = products.numpy(), row_bounds(len(products))
    threads = len(bounds) - 1
    room = at_most // threads + kernels.CHUNK
    latents, values = np.empty((threads, room), np.int32), np.empty((threads, room), np.float32)
    counts = np.zeros(len(pre), np.int64)
    if not kernels.scan(pre, (lower.detach() - bias).contiguous().numpy(), bounds, counts, latents, values):
        return None
    starts = np.concatenate([[0], np.cumsum(counts)])
    used = [starts[b] - starts[a] for a, b in zip(bounds, bounds[1:], strict=False)]
    entries = Entries(starts, np.concatenate([part[:n] for part, n in zip(latents, used, strict=True)]), pre.shape[1])
    found = torch.from_numpy(np.concatenate([part[:n] for part, n in zip(values, used, strict=True)]))
    return entries, found + bias[entries.index]
