"""Find each latent's neighbours, by decoder cosine and by co-firing, and cluster latents by both.

Legend of shapes: F latents, d width of the outputs, k neighbours, n firings in the sampled rows.
"""

from typing import NamedTuple

import numpy as np
import torch
from numba import prange

from scopemill.evaluator.evidence.loops import mixed
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.crosslayer import CrossLayerTranscoder
from scopemill.trainer.sparse.kernels.compiled import compiled

BLOCK = 512  # latents compared at once; a fixed number, as a product's last bits may depend on it
ROUNDS = 30  # of label propagation; it ends earlier where nothing changes
LEAST_COSINE, LEAST_PHI = 0.3, 0.2  # of an edge of the graph that is clustered


class Neighbours(NamedTuple):
    """Hold the k nearest of each latent, nearest first; -1 where there are fewer."""

    latents: np.ndarray  # [F, k], int32
    scores: np.ndarray  # [F, k], float32


def decoder_rows(sae: Sae) -> torch.Tensor:
    """Return each latent's decoder row [F, d], zero where it does not write."""
    if not isinstance(sae, CrossLayerTranscoder):
        return sae.W_dec.detach()
    rows = sae.b_dec.new_zeros(sae.width, sae.d_out)
    for layer, weights in enumerate(sae.W_dec):
        reach = sae.reach(layer)
        rows[layer * sae.per_layer : (layer + 1) * sae.per_layer, reach.start : reach.stop] = weights.detach()
    return rows


def by_cosine(rows: torch.Tensor, k: int) -> Neighbours:
    """Return the neighbours of the largest cosine between decoder rows [F, d].

    A latent of no norm has none.
    """
    norms = rows.norm(dim=1, keepdim=True)
    unit = rows / norms.where(norms > 0, torch.inf)
    width = len(rows)
    latents, scores = np.full((width, k), -1, np.int32), np.full((width, k), np.nan, np.float32)
    for start in range(0, width, BLOCK):
        block = unit[start : start + BLOCK]
        cosines = block @ unit.T
        own = torch.arange(len(block), device=block.device)
        cosines[own, start + own] = -torch.inf
        cosines[:, norms[:, 0] == 0] = -torch.inf
        best, at = cosines.topk(min(k, width), dim=1)
        found = (best > -torch.inf) & (norms[start : start + BLOCK] > 0)
        latents[start : start + BLOCK, : best.shape[1]] = at.where(found, -1).cpu().numpy()
        scores[start : start + BLOCK, : best.shape[1]] = best.where(found, torch.nan).cpu().numpy()
    return Neighbours(latents, scores)


def by_cofiring(latents: np.ndarray, rows: np.ndarray, sampled: int, width: int, k: int) -> Neighbours:
    """Return the neighbours of the largest positive phi coefficient over ``sampled`` rows.

    Firings are given by latent and row [n]; rows are any distinct numbers.
    """
    return by_cofiring_with((latents, rows, width), None, sampled, k)


Fired = tuple[np.ndarray, np.ndarray, int]  # firings by latent and row [n], and the number of latents


def by_cofiring_with(own: Fired, other: Fired | None, sampled: int, k: int) -> Neighbours:
    """Return the neighbours of the largest positive phi among another SAE's latents.

    Without another SAE they are of the same one, and no latent is its own neighbour.
    """
    (latents, rows, width), (its_latents, its_rows, its_width) = own, other or own
    row, distinct = _numbered(np.concatenate((rows, its_rows)) if other else rows)
    starts, row_of = _grouped(latents, row[: len(rows)], width)
    row_starts, latent_of = _grouped(row[len(row) - len(its_rows) :], its_latents, distinct)
    its_fired = np.bincount(its_latents, minlength=its_width).astype(np.float64)
    found, phi = np.full((width, k), -1, np.int32), np.full((width, k), np.nan, np.float32)
    _cofiring(starts, row_of, row_starts, latent_of, its_fired, other is None, float(sampled), found, phi)
    return Neighbours(found, phi)


@compiled()
def _numbered(rows):
    """Return a number below that of distinct rows for each row [n], and how many are distinct.

    A table of hashes holds each row's number: sorting took longer than counting.
    """
    table, last = np.full(2**10, -1, np.int32), np.uint64(2**10 - 1)
    known, number, n = np.empty(2**9, np.int64), np.empty(len(rows), np.int32), 0
    for e in range(len(rows)):
        if n == len(known):
            known = np.concatenate((known, np.empty(n, np.int64)))
            table, last = np.full(4 * n, -1, np.int32), np.uint64(4 * n - 1)
            for i in range(n):
                at = mixed(np.uint64(known[i])) & last
                while table[at] >= 0:
                    at = (at + np.uint64(1)) & last
                table[at] = i
        at = mixed(np.uint64(rows[e])) & last
        while table[at] >= 0 and known[table[at]] != rows[e]:
            at = (at + np.uint64(1)) & last
        if table[at] < 0:
            table[at], known[n] = n, rows[e]
            n += 1
        number[e] = table[at]
    return number, n


@compiled()
def _grouped(keys, values, groups):
    """Return where each key's values start, and the values by keys, each key's in their order."""
    starts = np.zeros(groups + 1, np.int64)
    for e in range(len(keys)):
        starts[keys[e] + 1] += 1
    for g in range(groups):
        starts[g + 1] += starts[g]
    free, grouped = starts[:-1].copy(), np.empty(len(keys), np.int32)
    for e in range(len(keys)):
        grouped[free[keys[e]]] = values[e]
        free[keys[e]] += 1
    return starts, grouped


@compiled(parallel=True)
def _cofiring(starts, rows, row_starts, latents, its_fired, same, sampled, found, phi):
    width = len(found)
    for block in prange((width + 255) // 256):
        together = np.zeros(len(its_fired), np.int64)
        touched = np.empty(len(its_fired), np.int32)
        for f in range(block * 256, min(width, (block + 1) * 256)):
            n = 0
            for e in range(starts[f], starts[f + 1]):
                for at in range(row_starts[rows[e]], row_starts[rows[e] + 1]):
                    other = latents[at]
                    if together[other] == 0:
                        touched[n] = other
                        n += 1
                    together[other] += 1
            fired = float(starts[f + 1] - starts[f])
            chosen = np.sort(touched[:n])
            for i in range(n):
                other = chosen[i]
                other_fired = its_fired[other]
                spread = fired * (sampled - fired) * other_fired * (sampled - other_fired)
                value = 0.0
                if spread > 0:
                    value = (sampled * together[other] - fired * other_fired) / np.sqrt(spread)
                together[other] = 0
                if value > 0 and not (same and other == f):
                    rank(found[f], phi[f], other, np.float32(value))


@compiled()
def rank(found, scores, latent, score):
    """Put a latent in its place among the best, after equal ones."""
    at = len(found) - 1
    if found[at] >= 0 and scores[at] >= score:
        return
    while at > 0 and (found[at - 1] < 0 or scores[at - 1] < score):
        found[at], scores[at] = found[at - 1], scores[at - 1]
        at -= 1
    found[at], scores[at] = latent, score


def clusters(cosine: Neighbours, cofiring: Neighbours) -> np.ndarray:
    """Return each latent's cluster [F], named by its smallest latent.

    The graph has an edge between latents that are among each other's neighbours, of either kind. Labels are propagated in the order
    of latents: each takes the label of the largest sum of scores, among equals the smallest.
    """
    edges: list[dict[int, float]] = [{} for _ in range(len(cosine.latents))]
    for near, least in ((cosine, LEAST_COSINE), (cofiring, LEAST_PHI)):
        chosen = [{int(o): float(s) for o, s in zip(*row, strict=True) if o >= 0 and s >= least} for row in zip(*near, strict=True)]
        for latent, others in enumerate(chosen):
            for other, score in others.items():
                if latent in chosen[other]:
                    edges[latent][other] = edges[latent].get(other, 0.0) + score
    labels = list(range(len(edges)))
    for _ in range(ROUNDS):
        changed = False
        for latent, others in enumerate(edges):
            if others:
                weights: dict[int, float] = {}
                for other in sorted(others):
                    weights[labels[other]] = weights.get(labels[other], 0.0) + others[other]
                best = min(weights, key=lambda label: (-weights[label], label))
                changed, labels[latent] = changed or best != labels[latent], best
        if not changed:
            break
    smallest: dict[int, int] = {}
    for latent, label in enumerate(labels):
        smallest.setdefault(label, latent)
    return np.array([smallest[label] for label in labels], np.int32)
