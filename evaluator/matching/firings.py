"""Sample the firings of several SAEs on the same rows.

A row is a token of the packed text, named by shard and place. Whether it is sampled depends on its name alone, so SAEs of different hooks
and datasets of one text get the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from scopemill.evaluator.evidence import loops
from scopemill.evaluator.evidence.encoding import Encoder
from scopemill.evaluator.evidence.neighbours import Neighbours, by_cofiring_with
from scopemill.evaluator.evidence.rows import Source
from scopemill.trainer.formats import FinishedSae


@dataclass(frozen=True)
class Sampled:
    """Hold an SAE's firings by latent and row [n], and all rows that were sampled."""

    width: int
    latents: np.ndarray  # int32
    rows: np.ndarray  # int64
    values: np.ndarray  # float32
    drawn: np.ndarray  # int64, rising

    @property
    def l0(self) -> float:
        """Return the mean number of latents that fire on a row."""
        return len(self.rows) / max(1, len(self.drawn))

    @property
    def fired(self) -> np.ndarray:
        """Return on how many rows each latent [F] fires."""
        return np.bincount(self.latents, minlength=self.width)

    def as_array(self) -> sparse.csr_array:
        """Return the activations [n, F], a row for each that was drawn."""
        at = np.searchsorted(self.drawn, self.rows)
        return sparse.csr_array((self.values.astype(np.float64), (at, self.latents)), shape=(len(self.drawn), self.width))

    def on(self, rows: np.ndarray) -> "Sampled":
        """Return the same on some of the rows."""
        kept = np.isin(self.rows, rows)
        return Sampled(self.width, self.latents[kept], self.rows[kept], self.values[kept], rows)


def chosen_shards(shards: Sequence[int], rows: int, wanted: int) -> tuple[list[int], float]:
    """Return the shards to read for ``wanted`` rows, and the share to sample.

    They lie evenly over all shards, so that the sample is of the whole text.
    """
    per_shard = max(1, rows // len(shards))
    count = min(len(shards), -(-wanted // per_shard))
    return [shards[len(shards) * i // count] for i in range(count)], min(1.0, wanted / (count * per_shard))


@torch.no_grad()
def sample_firings(source: Source, shards: Sequence[int], share: float, saes: Sequence[FinishedSae], seed: int = 0) -> list[Sampled]:
    """Return each SAE's firings on sampled rows, read once for all SAEs."""
    encoders = [Encoder(sae.sae) for sae in saes]
    hooks = list(dict.fromkeys(hook for sae in saes for hook in sae.inputs))
    found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in saes]
    drawn = []
    for shard in shards:
        for places, raw in source.rows(shard, hooks):
            keep = loops.row_keys(seed, shard, places) < np.uint64(share * (2**64 - 2**11))
            names = np.int64(shard << 32) + places[keep].astype(np.int64)
            drawn.append(names)
            kept = torch.from_numpy(np.flatnonzero(keep))
            for sae, encoder, of_sae in zip(saes, encoders, found, strict=True):
                x = torch.cat([raw[hook][kept.to(raw[hook].device)] for hook in sae.inputs], dim=1)
                firings = encoder(x.to(sae.sae.device))
                counts = np.diff(firings.starts.cpu().numpy())
                latents, values = (x.cpu().numpy() for x in (firings.latents, firings.values))
                of_sae.append((latents.astype(np.int32), np.repeat(names, counts), values.astype(np.float32)))
    all_drawn = np.sort(np.concatenate(drawn))
    joined = [tuple(map(np.concatenate, zip(*of_sae, strict=True))) for of_sae in found]
    return [Sampled(sae.sae.width, latents, rows, values, all_drawn) for sae, (latents, rows, values) in zip(saes, joined, strict=True)]


def on_common_rows(own: Sampled, other: Sampled) -> tuple[Sampled, Sampled]:
    """Return both on the rows that both have: outlier filters drop different ones."""
    if np.array_equal(own.drawn, other.drawn):
        return own, other
    common = np.intersect1d(own.drawn, other.drawn, assume_unique=True)
    return own.on(common), other.on(common)


def by_phi(own: Sampled, other: Sampled, k: int) -> Neighbours:
    """Return another SAE's k latents that fire together with each own latent.

    They are those of the largest positive phi on the same rows; among equals the smaller latent comes first.
    """
    return by_cofiring_with(
        (own.latents, own.rows, own.width), (other.latents, other.rows, other.width), len(own.drawn), min(k, other.width)
    )


def shared(own: Sampled, other: Sampled, pairs: np.ndarray) -> np.ndarray:
    """Return on how many rows both latents of each pair [n, 2] fire."""
    (own_rows, own_starts), (other_rows, other_starts) = (_by_latent(sampled) for sampled in (own, other))
    return np.array(
        [
            np.intersect1d(
                own_rows[own_starts[a] : own_starts[a + 1]], other_rows[other_starts[b] : other_starts[b + 1]], assume_unique=True
            ).size
            for a, b in pairs
        ],
        dtype=np.int64,
    )


def _by_latent(sampled: Sampled) -> tuple[np.ndarray, np.ndarray]:
    order = sampled.latents.argsort(kind="stable")
    return sampled.rows[order], np.searchsorted(sampled.latents[order], np.arange(sampled.width + 1))
