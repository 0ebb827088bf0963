"""Find the nearest latents of another SAE by the cosine of decoder rows.

Legend of shapes: F latents of this SAE, G of the other, d width of the outputs, k neighbours.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import prange

from scopemill.evaluator.evidence.neighbours import Neighbours, rank
from scopemill.proto.hooks import Hook
from scopemill.trainer.sparse.kernels.compiled import compiled

ROWS, TILE = 512, 2**14  # latents of this SAE and of the other that are compared at once
SPARE = 4  # candidates beyond k whose cosine is computed again in float64
RESCORED = 2**24  # numbers of rows gathered at once for that
RESIDUAL = {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"}  # sites that are, or are added to, the residual stream


def space_of(outputs: Sequence[str]) -> tuple[str, ...]:
    """Return the spaces that decoder rows lie in, one for each output hook.

    Rows are comparable where the spaces are equal: the residual stream is one space over all layers, any other site only equals itself.
    """
    return tuple("the residual stream" if Hook.parse(name).site in RESIDUAL else name for name in outputs)


@torch.no_grad()
def nearest(own: torch.Tensor, other: torch.Tensor, k: int) -> Neighbours:
    """Return the other's k rows of the largest cosine with each own row.

    Rows are ``other`` [G, d] and ``own`` [F, d].

    Scores are computed in float64; among equals the smaller latent comes first. A row of no norm has no neighbours, and is none.
    """
    k = min(k, len(other))
    a, b = unit(own), unit(other)
    dead = (b.square().sum(1) == 0).cpu().numpy()
    latents, scores = np.full((len(a), k), -1, np.int32), np.full((len(a), k), np.nan, np.float32)
    for start in range(0, len(a), ROWS):
        block = a[start : start + ROWS]
        found = np.full((len(block), k + SPARE), -1, np.int32)
        best = np.full(found.shape, np.nan, np.float32)
        for first in range(0, len(b), TILE):
            products = (block @ b[first : first + TILE].T).cpu().numpy()
            products[:, dead[first : first + TILE]] = -np.inf
            _keep_largest(products, first, found, best)
        found[(block.square().sum(1) == 0).cpu().numpy()] = -1
        own_slice = slice(start, start + len(block))
        latents[own_slice], scores[own_slice] = _rescored(own[own_slice], other, found, k)
    return Neighbours(latents, scores)


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Return rows of norm 1; a row of no norm stays zero."""
    norms = rows.norm(dim=1, keepdim=True)
    return rows / norms.where(norms > 0, torch.inf)


@compiled(parallel=True)
def _keep_largest(products, first, found, best):
    for row in prange(len(products)):
        for column in range(products.shape[1]):
            if products[row, column] > -np.inf:
                rank(found[row], best[row], first + column, products[row, column])


def _rescored(own: torch.Tensor, other: torch.Tensor, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of the candidates [F, k + SPARE] by cosine in float64, and the cosines."""
    cosines = np.full(found.shape, -np.inf)
    step = max(1, RESCORED // (found.shape[1] * own.shape[1]))
    for start in range(0, len(found), step):
        part = slice(start, start + step)
        rows = unit(other[torch.as_tensor(found[part]).clamp(min=0).long().to(other.device)].flatten(0, 1).double())
        products = rows.unflatten(0, (-1, found.shape[1])) @ unit(own[part].double())[..., None]
        cosines[part] = products[..., 0].cpu().numpy()
    cosines[found < 0] = -np.inf
    last = np.where(found < 0, np.iinfo(np.int32).max, found)
    order = np.lexsort((last, -cosines), axis=1)[:, :k]
    latents, scores = (np.take_along_axis(x, order, axis=1) for x in (found, cosines))
    return latents, np.where(latents < 0, np.nan, scores).astype(np.float32)
