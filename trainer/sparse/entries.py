"""Places [row, latent] of a batch, and what is differentiable at those only.

Gradients of weights stay sums over entries (`Term`) until the optimiser adds them up row by row.
Legend of shapes: B rows, F latents, d width of what is rebuilt, n entries.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from scopemill.trainer.sparse.kernels.base import Backend, Columns, offsets
from scopemill.trainer.sparse.kernels.select import backend_for


@dataclass(frozen=True)
class Entries:
    """By rows: row i has ``latents[starts[i]:starts[i + 1]]``."""

    starts: torch.Tensor  # [B + 1], int64
    latents: torch.Tensor  # [n], int32
    width: int
    backend: Backend

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def columns(self) -> Columns:
        return self.backend.by_latents(self.starts, self.latents, self.width)

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Sums [F] of the values [n] of each latent."""
        return self.backend.add_up(self.columns, values)

    def share(self, fires: torch.Tensor | None = None) -> torch.Tensor:
        """In which share of the rows each latent has an entry [F], or one that ``fires`` [n]."""
        counts = self.columns.starts.diff() if fires is None else self.add_up(fires.float())
        return counts.float() / self.rows

    def kept(self, keep: torch.Tensor) -> "Entries":
        """Those that ``keep`` [n] says."""
        return Entries(offsets(keep)[self.starts], self.latents[keep], self.width, self.backend)

    def renumbered(self, by: int, width: int) -> "Entries":
        """The same with ``by`` added to every latent's number, of ``width`` latents."""
        return Entries(self.starts, self.latents + by, width, self.backend)

    def part(self, start: int, stop: int) -> tuple["Entries", torch.Tensor]:
        """Those of the latents from ``start`` up to ``stop``, numbered from 0, and which of all they are [n]."""
        inside = (self.latents >= start) & (self.latents < stop)
        return self.kept(inside).renumbered(-start, stop - start), inside

    @staticmethod
    def of_equal_rows(latents: torch.Tensor, keep: torch.Tensor, width: int, backend: Backend) -> "Entries":
        """From as many candidates in each row [B, k], those that ``keep`` [B, k] says."""
        return Entries(offsets(keep.sum(1)), latents[keep].to(torch.int32), width, backend)


def scan(products: torch.Tensor, bias: torch.Tensor, lower: torch.Tensor, at_most: int) -> tuple[Entries, torch.Tensor] | None:
    """The entries of [B, F] products plus bias [F] that lie above ``lower`` [F], and their values. None if there are more than about
    ``at_most``. Where rounding decides, an entry may be in or out; who selects must not depend on it."""
    backend = backend_for(bias)
    found = backend.scan(products, bias, lower.detach(), at_most)
    return None if found is None else (Entries(found.starts, found.latents, products.shape[1], backend), found.values)


class Term(NamedTuple):
    """Part of the gradient of weights [F, d]: for each latent the sum over its entries of factor times row of the matrix."""

    columns: Columns
    factors: torch.Tensor  # [n], by rows
    matrix: torch.Tensor  # [B, d]


def give(weights: torch.Tensor, entries: Entries, factors: torch.Tensor, matrix: torch.Tensor) -> None:
    """Hand a term to a parameter, for the optimiser."""
    if weights.requires_grad:
        weights.terms = [*getattr(weights, "terms", []), Term(entries.columns, factors.detach().contiguous(), matrix.contiguous())]


class DecodeAt(torch.autograd.Function):
    """(values [n], weights [F, d]) to the sum [B, d] of the weights' rows at each row's entries, each times its value."""

    @staticmethod
    def forward(ctx, values, weights, entries):
        operand = entries.backend.operand(weights.detach())
        ctx.save_for_backward(values, weights)
        ctx.operand, ctx.entries = operand, entries
        return entries.backend.decode(entries.starts, entries.latents, values.contiguous(), operand)

    @staticmethod
    def backward(ctx, d_out):
        values, weights = ctx.saved_tensors
        entries, operand = ctx.entries, ctx.operand
        d_out = d_out.to(operand.dtype).contiguous()
        give(weights, entries, values, d_out)
        return entries.backend.products(entries.starts, entries.latents, d_out, operand), None, None


class MissesAt(torch.autograd.Function):
    """The same less a target [B, d]: the sum of its squares, and itself without a gradient.

    The gradient is known up to a factor once the error is, so it is found while the weights are at hand.
    """

    @staticmethod
    def forward(ctx, values, weights, target, entries):
        operand = entries.backend.operand(weights.detach())
        places = entries.starts, entries.latents
        error, squares, d_values = entries.backend.rebuild(*places, values.contiguous(), operand, target.contiguous())
        ctx.save_for_backward(values, weights, error, d_values)
        ctx.entries, ctx.dtype = entries, operand.dtype
        ctx.mark_non_differentiable(error)
        return squares.sum(), error

    @staticmethod
    def backward(ctx, d_sum, _):
        values, weights, error, d_values = ctx.saved_tensors
        d_out = 2 * d_sum * error
        give(weights, ctx.entries, values, d_out.to(ctx.dtype))
        return 2 * d_sum * d_values, None, -d_out, None


class EncodeAt(torch.autograd.Function):
    """Pre-activations that are known already, [n], as a function of the encoder: x W_enc^T + b_enc at the entries.

    ``x`` [B, d] is what the encoder took, with ``b_dec`` subtracted where there is one.
    """

    @staticmethod
    def forward(ctx, values, b_enc, b_dec, weights, x, entries):
        ctx.save_for_backward(weights, entries.backend.operand(x))
        ctx.entries, ctx.has_bias, ctx.centred = entries, b_enc is not None, b_dec is not None
        return values.clone()

    @staticmethod
    def backward(ctx, d_values):
        weights, x = ctx.saved_tensors
        d_values = d_values.contiguous()
        give(weights, ctx.entries, d_values, x)
        d_bias = ctx.entries.add_up(d_values) if ctx.has_bias or ctx.centred else None
        d_b_dec = -(d_bias @ weights.detach()) if ctx.centred else None
        return None, d_bias if ctx.has_bias else None, d_b_dec, None, None, None
