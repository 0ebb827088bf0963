"""Co-firing is the phi coefficient of the whole matrix, however rows are numbered and in whatever order firings come."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scopemill.evaluator.evidence.neighbours import by_cofiring


def brute_force(fires: np.ndarray, sampled: int, k: int) -> list[list[tuple[float, int]]]:
    """Of rows [n, F] that fire, among ``sampled``: each latent's k largest positive phi, by float64 sums of products."""
    counts, both = fires.sum(0), fires.T @ fires
    spread = np.outer(counts * (sampled - counts), counts * (sampled - counts))
    phi = np.divide(sampled * both - np.outer(counts, counts), np.sqrt(spread), out=np.zeros_like(both), where=spread > 0)
    np.fill_diagonal(phi, 0)
    near = [sorted((-np.float32(x), other) for other, x in enumerate(row) if x > 0)[:k] for row in phi]
    return [[(-x, other) for x, other in of_latent] for of_latent in near]


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 1500), width=st.integers(1, 300), share=st.floats(0.0, 0.2))
def test_neighbours_are_those_of_a_brute_force(seed, rows, width, share):
    random = np.random.default_rng(seed)
    fires = random.random((rows, width)) < share * random.random(width)
    row, latent = fires.nonzero()
    numbers = (random.integers(0, 2**20, rows, dtype=np.int64) << 32) + random.permutation(rows)
    order = random.permutation(len(row))
    sampled = rows + int(random.integers(0, 100))
    found = by_cofiring(latent[order].astype(np.int32), numbers[row[order]], sampled, width, 5)
    for of_latent, others, scores in zip(brute_force(fires.astype(float), sampled, 5), *found, strict=True):
        n = len(of_latent)
        assert np.all(others[n:] == -1) and np.all(np.isnan(scores[n:]))
        assert list(zip(scores[:n], others[:n], strict=True)) == of_latent
