"""Find a feature's main latents, which are several where it is split.

Latents are added while they raise the F1 by more than `GAIN`.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from scopemill.evaluator.probes.logistic import fitted, standardized

GAIN, MOST = 0.03, 10
PENALTY = 1.0  # scikit-learn's C of a probe on few latents
CANDIDATES = 64  # latents of the largest F1 alone, from which a union grows


def f1(predicted: np.ndarray, expected: np.ndarray) -> float:
    """Return the F1 of a prediction, both bool [n]; 0 where nothing is right."""
    right = int((predicted & expected).sum())
    return 2 * right / (int(predicted.sum()) + int(expected.sum())) if right else 0.0


def best_threshold(margins: np.ndarray, targets: np.ndarray) -> float:
    """Return the least margin [n] to predict a target at, so that F1 is largest.

    Zero would do for targets that are half of all rows; of rarer ones a probe on few latents would predict none.
    """
    order = np.argsort(-margins, kind="stable")
    falling = margins[order]
    scores = 2 * np.cumsum(targets[order]) / (np.arange(1, len(order) + 1) + targets.sum())
    last_of_equals = np.append(falling[1:] < falling[:-1], True)
    return float(falling[np.argmax(np.where(last_of_equals, scores, -1.0))])


def grown(score: Callable[[int], float]) -> int:
    """Return how many latents to take: while the next gains more than `GAIN`."""
    k, best = 1, score(1)
    while k < MOST and (more := score(k + 1)) - best > GAIN:
        k, best = k + 1, more
    return k


def by_probe(latents: sparse.csr_array, targets: np.ndarray, is_test: np.ndarray) -> tuple[list[int], float]:
    """Return the main latents of a target and their probe's F1 on the test rows.

    Latents [n, F] are ordered by the difference of their mean on and off the target over the training rows; a logistic probe sees the first
    k and predicts at the threshold of `best_threshold`. A latent that fires less for the target is none of it.
    """
    weights = np.where(targets, 1 / targets[~is_test].sum(), -1 / (~targets)[~is_test].sum()) * ~is_test
    difference = latents.T @ weights
    order = np.argsort(-difference, kind="stable")[: min(MOST, int((difference > 0).sum()))]
    if not len(order):
        return [], 0.0
    scores: dict[int, float] = {}

    def score(k: int) -> float:
        if k > len(order):
            return -np.inf
        x = latents[:, order[:k]].toarray()
        train, test = standardized(x[~is_test], x[is_test])
        probe = fitted(train, targets[~is_test], PENALTY)
        least = best_threshold(probe.decision_function(train), targets[~is_test])
        scores[k] = f1(probe.decision_function(test) >= least, targets[is_test])
        return scores[k]

    k = grown(score)
    return order[:k].tolist(), scores[k]


def by_union(fires: sparse.csc_array, rows: np.ndarray) -> tuple[list[int], float]:
    """Return the latents whose union fires best where a feature is, and its F1.

    ``fires`` is bool [n, F], ``rows`` are those of the feature. The first latent has the largest F1 alone, each further one raises that of
    the union most; among equals the smallest is taken. No probe is fitted, so thousands of features are quick.
    """
    expected = np.zeros(fires.shape[0], bool)
    expected[rows] = True
    right = np.asarray(fires[rows].sum(axis=0), np.float64).ravel()
    alone = 2 * right / (np.diff(fires.indptr) + len(rows))
    candidates = np.argsort(-alone, kind="stable")[: min(CANDIDATES, int((right > 0).sum()))]
    if not len(candidates):
        return [], 0.0
    columns = {int(latent): fires.indices[fires.indptr[latent] : fires.indptr[latent + 1]] for latent in candidates}
    chosen, union, best = [int(candidates[0])], np.zeros(fires.shape[0], bool), float(alone[candidates[0]])
    union[columns[chosen[0]]] = True
    while len(chosen) < MOST:
        scored = [(-_joined_f1(union, columns[int(c)], expected), int(c)) for c in candidates if int(c) not in chosen]
        if not scored or -min(scored)[0] - best <= GAIN:
            break
        score, latent = min(scored)
        chosen, best = [*chosen, latent], -score
        union[columns[latent]] = True
    return chosen, best


def _joined_f1(union: np.ndarray, more: np.ndarray, expected: np.ndarray) -> float:
    new = more[~union[more]]
    right = int((union & expected).sum()) + int(expected[new].sum())
    return 2 * right / (int(union.sum()) + len(new) + int(expected.sum())) if right else 0.0
