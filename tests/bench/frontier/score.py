"""What a finished SAE is worth: float64 arithmetic of its own, from exported weights alone.

Every package's SAEs are brought to one form: z = W_enc x + b_enc, then the k largest of a row (TopK), or those above their thresholds
(JumpReLU; BatchTopK and Matryoshka as they are used after training), each only where it is positive; x^ = f W_dec + b_dec.
"""

from dataclasses import dataclass

import numpy as np

CHUNK = 2048  # rows at a time


@dataclass(frozen=True)
class Weights:
    """W_enc and W_dec [F, d], b_enc [F], b_dec [d], and either k or the thresholds [F]."""

    W_enc: np.ndarray
    b_enc: np.ndarray
    W_dec: np.ndarray
    b_dec: np.ndarray
    threshold: np.ndarray | None = None
    k: int | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in vars(self).items() if value is not None}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> "Weights":
        k = arrays.get("k")
        exact = {name: np.asarray(value, np.float64) for name, value in arrays.items() if name != "k"}
        return cls(**exact, k=None if k is None else int(k))


@dataclass(frozen=True)
class Score:
    fvu: float  # sum ||x - x^||^2 / sum ||x - mean||^2
    l0: float
    dead: float  # share of the latents that fire on no row


def latents(weights: Weights, x: np.ndarray) -> np.ndarray:
    """f [B, F]."""
    z = x @ weights.W_enc.T + weights.b_enc
    if weights.k is not None:
        smallest = np.partition(z, -weights.k, axis=1)[:, -weights.k, None]
        return np.where((z >= smallest) & (z > 0), z, 0.0)
    return np.where((z > weights.threshold) & (z > 0), z, 0.0)


def score(weights: Weights, x: np.ndarray) -> Score:
    """Of rows x [n, d]."""
    mean = x.mean(0, dtype=np.float64)
    error = variance = fired = 0.0
    ever = np.zeros(len(weights.b_enc), bool)
    for start in range(0, len(x), CHUNK):
        rows = x[start : start + CHUNK].astype(np.float64)
        f = latents(weights, rows)
        error += np.square(rows - (f @ weights.W_dec + weights.b_dec)).sum()
        variance += np.square(rows - mean).sum()
        fired += np.count_nonzero(f)
        ever |= f.any(0)
    return Score(float(error / variance), float(fired / len(x)), float(1 - ever.mean()))
