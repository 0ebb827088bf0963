"""Score an SAE against a world's planted features.

MCC, uniqueness, precision and recall are those of SynthSAEBench (arXiv 2602.14687). Legend: F latents, N features, n rows.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

from scopemill.evaluator.fidelity.measure import Moments
from scopemill.evaluator.synthetic.world import World
from scopemill.trainer.sae.base import Sae


@dataclass(frozen=True)
class Truth:
    """Record how well an SAE found planted features."""

    l0: float
    true_l0: float  # features that fire per row
    fvu: float
    dead_fraction: float
    mcc: float  # mean |cosine| over the best one-to-one matching of latents and features (arXiv 2505.20254)
    uniqueness: float  # features that are the nearest one of some latent, over the number of latents
    precision: float  # each of these three: mean over latents, a latent as detector of its nearest feature
    recall: float
    f1: float


@torch.no_grad()
def score(sae: Sae, world: World, rows: int, batch_size: int = 1024, start: int = 1_000_000) -> Truth:
    """Score a finished SAE on ``rows`` rows of the world.

    They are batch ``start`` and later ones, which training has not reached.
    """
    cosines = _unit(sae.W_dec.detach()) @ _unit(world.directions).T
    nearest = cosines.abs().argmax(dim=1)
    both, fired, present = (torch.zeros(sae.width, dtype=torch.float64) for _ in range(3))
    seen, true, error, moments = 0, 0.0, 0.0, Moments(world.config.d)
    for k in range(start, start - (-rows // batch_size)):
        strengths = world.strengths(k, batch_size)
        x = world.rows(strengths)
        latents, rebuilt = sae.reconstruct(x)
        fires, truth = latents > 0, strengths[:, nearest] > 0
        for total, found in ((both, fires & truth), (fired, fires), (present, truth)):
            total += found.sum(0).double().cpu()
        error += float((x - rebuilt).double().square().sum())
        true += float((strengths > 0).sum())
        seen += len(x)
        moments.add(x)
    precision, recall = _share(both, fired), _share(both, present)
    return Truth(
        l0=float(fired.sum()) / seen,
        true_l0=true / seen,
        fvu=error / moments.squares,
        dead_fraction=float((fired == 0).double().mean()),
        mcc=matched(cosines.abs()),
        uniqueness=len(nearest.unique()) / len(nearest),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(_share(2 * precision * recall, precision + recall).mean()),
    )


def matched(similarities: torch.Tensor) -> float:
    """Return the mean similarity of the best one-to-one matching of rows and columns."""
    table = similarities.cpu().double().numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].mean())


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Divide, and give 0 where the whole is 0."""
    return torch.where(whole > 0, part / whole.clamp(min=1e-300), 0)
