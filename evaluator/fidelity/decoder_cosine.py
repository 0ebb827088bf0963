"""Measure how much an SAE's decoder rows overlap: advice on the right L0.

At too low an L0 latents mix correlated features, at too high a one they mix too, and both make decoder rows alike; among SAEs that
differ in L0 alone the overlap is least near the right one ("Sparse but Wrong", arXiv 2508.16560). The paper averages |cosine|
over all pairs. The root mean square is used here: it comes exactly from one d x d matrix, so it is cheap at any width.
"""

import math

import torch

from scopemill.trainer.sae.base import Sae

ROWS_AT_ONCE = 65_536


@torch.no_grad()
def decoder_cosine(sae: Sae, alive: torch.Tensor) -> float:
    """Return the root mean square cosine of all pairs of living decoder rows.

    ``alive`` is bool [F]. NaN with fewer than two such latents, and for cross-layer decoders, whose rows differ in length.
    """
    decoder = sae.W_dec
    count = int(alive.sum())
    if not isinstance(decoder, torch.Tensor) or count < 2:
        return math.nan
    gram = decoder.new_zeros(decoder.shape[1], decoder.shape[1], dtype=torch.float64)
    for rows, kept in zip(decoder.split(ROWS_AT_ONCE), alive.to(decoder.device).split(ROWS_AT_ONCE), strict=True):
        unit = rows[kept].double()
        unit /= unit.norm(dim=1, keepdim=True).clamp(min=1e-30)
        gram.addmm_(unit.T, unit)
    # sum over i, j of cosine(i, j)^2 = |W W^T|^2 = |W^T W|^2; the diagonal gives 1 for each row
    return math.sqrt(max(0.0, float(gram.square().sum()) - count) / (count * (count - 1)))
