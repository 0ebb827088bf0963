"""Fit a logistic probe on a task's training rows and score its test rows.

The strength of its L2 penalty is the one with the best mean AUC over folds of the training rows. Columns are standardized with
the training rows' mean and deviation. Everything is float64 and has a fixed seed.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

FOLDS, SEED = 5, 0
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C; at equal AUC the stronger penalty is taken


@dataclass(frozen=True)
class Score:
    """Record a probe's quality on the test rows."""

    auc: float  # chance that a row of the second target gets a higher score than one of the first
    accuracy: float


def probe(x: np.ndarray, targets: np.ndarray, is_test: np.ndarray) -> Score:
    """Fit on the training rows of x [n, k] and return the test rows' score.

    ``targets`` and ``is_test`` are bool [n].
    """
    train, test = standardized(x[~is_test].astype(np.float64), x[is_test].astype(np.float64))
    y, expected = targets[~is_test], targets[is_test]
    model = fitted(train, y, best_penalty(train, y))
    margins = model.decision_function(test)
    return Score(float(roc_auc_score(expected, margins)), float(((margins > 0) == expected).mean()))


def standardized(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays less the mean, over the deviation, of ``train``. Constant columns become 0."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12 * (1 + np.abs(mean)))
    return (train - mean) * scale, (test - mean) * scale


def best_penalty(x: np.ndarray, y: np.ndarray) -> float:
    """Choose C by the mean AUC over stratified folds of the rows x [n, k]."""
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(x, y))

    def score(c: float) -> float:
        return float(np.mean([roc_auc_score(y[held], fitted(x[kept], y[kept], c).decision_function(x[held])) for kept, held in folds]))

    return max(INVERSE_PENALTIES, key=score)  # the first of equals


def fitted(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    """Minimize |w|^2 / 2 + c * (sum of the rows' logistic losses)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable rows at a weak penalty: the order of scores is long settled
        return LogisticRegression(C=c, max_iter=500).fit(x, y)
