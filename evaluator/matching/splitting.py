"""Find the latents of a wider SAE that a latent splits into."""

from dataclasses import dataclass

import numpy as np

from scopemill.evaluator.evidence.neighbours import Neighbours
from scopemill.evaluator.matching.firings import Sampled, shared

LEAST_COSINE, LEAST_PHI = 0.4, 0.2  # of a child with its parent


@dataclass(frozen=True)
class Children:
    """Hold the parents of a wider SAE's latents, by parent, each parent's by falling score."""

    parents: np.ndarray  # [n]
    children: np.ndarray  # [n]
    scores: np.ndarray  # [n], cosine or phi
    overlap: np.ndarray  # [n], share of the child's firings on which its parent fires too; NaN where unknown


def children(back: Neighbours, least: float, narrow: Sampled | None, wide: Sampled | None) -> Children:
    """Return the children of a narrower SAE's latents.

    ``back`` are the nearest latents in the narrower SAE of each of the wider one: a latent has one parent at most, its nearest, if that
    scores at least ``least``.
    """
    parents, scores = back.latents[:, 0], back.scores[:, 0]
    found = np.flatnonzero((parents >= 0) & (scores >= least))
    found = found[np.lexsort((found, -scores[found], parents[found]))]
    overlap = np.full(len(found), np.nan, np.float32)
    if narrow and wide:
        together = shared(narrow, wide, np.stack([parents[found], found], axis=1))
        np.divide(together, wide.fired[found], out=overlap, where=wide.fired[found] > 0, casting="unsafe")
    return Children(parents[found], found.astype(np.int32), scores[found], overlap)
