"""Measure absorption without labels: a narrower SAE's latents are the features.

A latent of a narrower SAE has a direction, its decoder row, and a strength on each row, its activation times the row's norm. Its main
latents in the wider SAE are those that fire on the same rows. Where they do not, and more specific latents carry the direction, the
feature was absorbed.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from scopemill.evaluator.absorption.main_latents import by_union
from scopemill.evaluator.absorption.measure import absorption

FEWEST_ROWS = 20  # on which a narrow latent fires
MOST_ROWS = 256  # of each, evenly spaced: their mean is known well enough
LEAST_F1 = 0.3  # of the main latents: a latent without a counterpart has nothing that could be absorbed


@dataclass(frozen=True)
class Feature:
    """Record the absorption of one latent of a narrower SAE."""

    latent: int  # of the narrower SAE
    rows: int  # on which it fires
    main: tuple[int, ...]  # latents of the wider SAE; several: it is split
    main_f1: float
    full: float
    fraction: float


def measure_features(
    narrow: sparse.csr_array,
    narrow_decoder: np.ndarray,
    wide: sparse.csr_array,
    wide_decoder: np.ndarray,
) -> list[Feature]:
    """Measure how a wider SAE absorbs a narrower one's latents.

    Activations are [n, G] and [n, F] on the same rows, decoder rows [G, d] and [F, d]. Latents that fire on fewer than 20 rows, and those
    without a counterpart, are left out.
    """
    columns = sparse.csc_array(narrow)
    fires = sparse.csc_array((wide > 0).astype(np.int8))
    measured = []
    for latent in range(narrow.shape[1]):
        entries = slice(columns.indptr[latent], columns.indptr[latent + 1])
        rows, values = columns.indices[entries], columns.data[entries]
        norm = float(np.linalg.norm(narrow_decoder[latent]))
        if len(rows) < FEWEST_ROWS or not norm:
            continue
        main, score = by_union(fires, rows)
        if score < LEAST_F1:
            continue
        some = slice(None, None, -(-len(rows) // MOST_ROWS))
        found = absorption(wide[rows[some]], wide_decoder, narrow_decoder[latent], values[some] * norm, main)
        measured.append(Feature(latent, len(rows), tuple(main), score, float(found.full.mean()), float(found.fraction.mean())))
    return measured
