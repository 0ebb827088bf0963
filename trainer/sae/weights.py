"""Draw initial weights, and check the weights that a file holds."""

from collections.abc import Mapping, Sequence

import torch

from scopemill.proto.errors import SaeFormatError
from scopemill.trainer.sparse.codes import DenseCodes

ROWS_AT_ONCE = 4096  # drawn in one block, where a rank keeps some of the rows


def unit_rows(rows: int, d: int, generator: torch.Generator, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Draw He-uniform rows [rows, d], normalise them, and return rows ``start`` to ``stop``."""
    # Numbers are drawn one after another, so other ranks' rows are drawn too, a block at a time, and dropped.
    bound = (6 / d) ** 0.5
    weights = torch.empty((rows if stop is None else stop) - start, d)
    for first in range(0, rows, ROWS_AT_ONCE):
        block = torch.empty(min(ROWS_AT_ONCE, rows - first), d).uniform_(-bound, bound, generator=generator)
        own = block[max(0, start - first) : max(0, start + len(weights) - first)]
        weights[max(0, first - start) :][: len(own)] = own
    return weights / weights.norm(dim=1, keepdim=True)


def align_rows(weights: torch.Tensor, codes: DenseCodes, target: torch.Tensor) -> None:
    """Set weight rows to the unit-norm sums of targets, weighted by the latents.

    Rows are [F, d], targets [B, d]. A latent that never fires keeps its row.
    """
    sums = codes.values.T @ target.to(codes.values.dtype)
    norms = sums.norm(dim=1, keepdim=True)
    weights.copy_(torch.where(norms > 0, sums / norms.clamp(min=torch.finfo(norms.dtype).tiny), weights))


def check_tensors(place: str, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise SaeFormatError unless a file holds exactly the tensors of these names and shapes."""
    for name in sorted(tensors.keys() | shapes.keys()):
        if name not in tensors:
            raise SaeFormatError(f"{place} lacks the tensor {name}")
        if name not in shapes:
            raise SaeFormatError(f"{place} holds a tensor {name}, which does not belong there")
        if list(tensors[name].shape) != list(shapes[name]):
            raise SaeFormatError(f"{place}: tensor {name} has the shape {list(tensors[name].shape)} where {list(shapes[name])} belongs")
