"""Lay the clusters of an SAE's latents out in a plane, like ones together.

Isomap's distances (Tenenbaum et al. 2000) between clusters, embedded by t-SNE.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST = 300  # clusters, the largest
LEAST_LATENTS = 2  # of a cluster on the map
WORDS = 3  # that stand for a cluster
PERPLEXITY = 12.0


@dataclass(frozen=True)
class Place:
    """Place one cluster on the map; x and y lie in 0 to 1."""

    cluster: int  # its smallest latent
    latents: int
    x: float
    y: float
    tokens: tuple[int, ...]  # the ids on which most of its latents fire most


def cluster_map(rows: Sequence[dict[str, Any]]) -> list[Place]:
    """Return the places of the largest clusters, the largest first.

    ``rows`` are those of the evidence's table of latents, in order.
    """
    of_latent = np.array([row["cluster"] if row["fired"] else -1 for row in rows])
    sizes = Counter(of_latent[of_latent >= 0].tolist())
    chosen = sorted((c for c, n in sizes.items() if n >= LEAST_LATENTS), key=lambda c: (-sizes[c], c))[:MOST]
    places = _embedded(_distances(rows, of_latent, {cluster: sizes[cluster] for cluster in chosen}))
    tokens: dict[int, Counter[int]] = {cluster: Counter() for cluster in chosen}
    for row in rows:
        if row["fired"] and row["cluster"] in tokens and row["top_token"] is not None:
            tokens[row["cluster"]][row["top_token"]] += 1
    words = {c: tuple(sorted(counts, key=lambda t: (-counts[t], t))[:WORDS]) for c, counts in tokens.items()}
    return [Place(c, sizes[c], float(x), float(y), words[c]) for c, (x, y) in zip(chosen, places, strict=True)]


def _distances(rows: Sequence[dict[str, Any]], of_latent: np.ndarray, sizes: dict[int, int]) -> np.ndarray:
    """Return the length of the shortest way between clusters [n, n]; a step is short where many latents are alike."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import shortest_path

    index, n = {cluster: i for i, cluster in enumerate(sizes)}, len(sizes)
    likeness = np.zeros((n, n))
    counts = np.array(list(sizes.values()), float)
    for row in rows:
        here = index.get(int(of_latent[row["latent"]]))
        if here is None:
            continue
        for others, scores in (("nearest_latents", "nearest_cosines"), ("cofiring_latents", "cofiring_phi")):
            for other, score in zip(row[others], row[scores], strict=True):
                there = index.get(int(of_latent[other]))
                if there is not None and there != here and score > 0:
                    likeness[here, there] += score
    likeness = (likeness + likeness.T) / np.sqrt(np.outer(counts, counts))
    step = np.where(likeness > 0, 1 / np.sqrt(np.where(likeness > 0, likeness, 1)), 0)
    ways = shortest_path(csr_matrix(step), directed=False)
    reached = ways[np.isfinite(ways)]
    return np.where(np.isfinite(ways), ways, 1.5 * reached.max(initial=1.0))


def _embedded(distances: np.ndarray) -> np.ndarray:
    """Return a place in the unit square for each cluster [n, 2], the same in every run."""
    n = len(distances)
    if n < 3:
        return np.linspace(0.25, 0.75, n)[:, None].repeat(2, axis=1)
    from sklearn.manifold import TSNE

    plane = TSNE(metric="precomputed", init="random", perplexity=min(PERPLEXITY, (n - 1) / 3), random_state=0).fit_transform(distances)
    low, high = plane.min(axis=0), plane.max(axis=0)
    placed: np.ndarray = (plane - low) / np.where(high > low, high - low, 1)
    return placed
