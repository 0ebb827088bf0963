"""Measure absorption of a feature on rows that have it.

The definition is that of SAEBench (Chanin et al., arXiv 2409.14507, and its later fraction), in our own words. A feature has a direction p
of norm 1 and main latents, which are to fire for it. A latent contributes a * (w . p) to the feature: its activation, times its decoder
row along p. On a row where the feature has the strength s:

    fully absorbed   no main latent fires, and the latent that contributes most has a cosine with p of at least 0.025, and at least 0.4 s
    fraction         A / (A + M), M what the main latents contribute and A what up to three others do that have a cosine of at least 0.1,
                     no more than s - M; 0 where they contribute less than 0.4 s, or where the main latents carry all of s

Legend of shapes: n rows, F latents, d width of the hook.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

LEAST_SHARE = 0.4  # of the strength, that absorbing latents have to carry
LEAST_COSINE_FULL, LEAST_COSINE = 0.025, 0.1
MOST_ABSORBING = 3


class Absorbed(NamedTuple):
    """Hold what happened to a feature on each row [n]."""

    full: np.ndarray  # bool
    fraction: np.ndarray  # float64
    latent: np.ndarray  # int64: the latent that contributes most of those that are not main; -1 for none


def absorption(
    latents: sparse.csr_array, decoder: np.ndarray, direction: np.ndarray, strength: np.ndarray, main: Sequence[int]
) -> Absorbed:
    """Return the absorption of a feature on rows that have it.

    ``latents`` are activations [n, F], ``decoder`` rows [F, d], ``direction`` [d] of any norm, ``strength`` [n].
    """
    unit = direction.astype(np.float64) / np.linalg.norm(direction)
    along = decoder.astype(np.float64) @ unit
    norms = np.linalg.norm(decoder.astype(np.float64), axis=1)
    cosines = np.divide(along, norms, out=np.zeros_like(along), where=norms > 0)
    is_main = np.zeros(len(along), bool)
    is_main[list(main)] = True
    rows = [_of_row(latents, row, along, cosines, is_main, float(s)) for row, s in enumerate(strength)]
    full, fraction, latent = zip(*rows, strict=True) if rows else ((), (), ())
    return Absorbed(np.array(full, bool), np.array(fraction, np.float64), np.array(latent, np.int64))


def _of_row(
    latents: sparse.csr_array, row: int, along: np.ndarray, cosines: np.ndarray, is_main: np.ndarray, strength: float
) -> tuple[bool, float, int]:
    entries = slice(latents.indptr[row], latents.indptr[row + 1])
    active, values = latents.indices[entries], latents.data[entries]
    active, values = active[values > 0], values[values > 0]
    contributed = values * along[active]
    own = is_main[active]
    others, of_others = active[~own], contributed[~own]
    order = np.lexsort((others, -of_others))
    others, of_others = others[order], of_others[order]
    largest = int(others[0]) if len(others) else -1
    if strength <= 0 or largest < 0:
        return False, 0.0, largest
    full = not own.any() and cosines[largest] >= LEAST_COSINE_FULL and of_others[0] >= LEAST_SHARE * strength
    main = max(0.0, float(contributed[own].sum()))
    carried = float(of_others[cosines[others] >= LEAST_COSINE][:MOST_ABSORBING].sum())
    taken = min(carried, strength - main) if carried >= LEAST_SHARE * strength else 0.0
    return bool(full), taken / (taken + main) if taken > 0 else 0.0, largest
