"""Say in a few numbers how alike two SAEs are, beside random directions."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from scopemill.evaluator.evidence.neighbours import Neighbours
from scopemill.evaluator.matching.cosine import nearest, unit

ALIKE = 0.7  # a cosine from which two latents count as the same
COMPARED_WITH_RANDOM = 4096  # latents, evenly spaced: their mean is known well enough
SEED = 0


@dataclass(frozen=True)
class Similarity:
    """Record how well one SAE's latents are found again in another; NaN: unknown."""

    latents: int  # that count: they fire on the sampled rows, or without rows have a norm
    mean_max_cosine: float
    share_alike: float  # of the latents, those whose nearest has a cosine of at least `ALIKE`
    random_mean_max_cosine: float  # the same against random directions, as many and spread as the other's
    random_share_alike: float
    mutual: float  # share of latents whose nearest names them back
    mean_max_phi: float  # 0 for a latent that no other fires together with


def similarity(alive: np.ndarray, nearest_: Neighbours | None, back: Neighbours | None, phi: Neighbours | None, random: np.ndarray | None):
    """Return the similarity of one SAE to another.

    ``alive`` is bool [F]; ``back`` are the other's nearest in this one; ``random`` are cosines of `random_cosines`.
    """
    count = int(alive.sum())
    cosines = nearest_.scores[alive, 0] if nearest_ else np.empty(0)
    return Similarity(
        latents=count,
        mean_max_cosine=_mean(cosines),
        share_alike=_mean(cosines >= ALIKE),
        random_mean_max_cosine=_mean(random),
        random_share_alike=_mean(None if random is None else random >= ALIKE),
        mutual=_mean(mutual(nearest_, back)[alive] if nearest_ and back else None),
        mean_max_phi=_mean(np.nan_to_num(phi.scores[alive, 0]) if phi else None),
    )


def mutual(own: Neighbours, back: Neighbours) -> np.ndarray:
    """Return whether each latent [F] is the nearest of its nearest."""
    first = own.latents[:, 0]
    return (first >= 0) & (back.latents[first.clip(min=0), 0] == np.arange(len(first)))


def random_cosines(own: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """Return each row's largest cosine with as many random directions as ``other`` has rows.

    The directions are Gaussian with the second moment of the other's rows: decoder rows crowd in few dimensions, and random directions
    that did not would look too unlike.
    """
    rows = unit(other).double().cpu()
    moment = rows.T @ rows / len(rows)
    moment += torch.eye(len(moment), dtype=torch.float64) * (1e-6 * moment.trace() / len(moment) + 1e-30)
    generator = torch.Generator().manual_seed(SEED)
    directions = torch.randn(len(rows), len(moment), generator=generator) @ torch.linalg.cholesky(moment).T.float()
    some = own[:: -(-len(own) // COMPARED_WITH_RANDOM)]
    cosines = nearest(some, directions.to(own.device), 1).scores[:, 0]
    return cosines[np.isfinite(cosines)]


def _mean(values: np.ndarray | None) -> float:
    return math.nan if values is None or not len(values) else float(np.mean(values, dtype=np.float64))
