"""The ledger of an SAE, from a list of all its firings, by hand: one latent at a time, in Python's own numbers."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from scopemill.evaluator.evidence.ledger import Firings, Ledger, Sizes
from scopemill.proto.evidence import BINS, INTERVALS

MASK = 2**64 - 1


class Firing(NamedTuple):
    shard: int
    place: int
    latent: int
    value: float


def _mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def _key(seed: int, firing: Firing) -> int:
    start = _mixed((seed * 0x9E3779B97F4A7C15 + firing.shard + 1) & MASK)
    row = _mixed((start + firing.place * 0x9E3779B97F4A7C15) & MASK)
    return _mixed(row ^ _mixed((firing.latent + 0x632BE59BD9B4E019) & MASK))


def expected(firings: Iterable[Firing], width: int, tokens: dict[int, np.ndarray], context: int, sizes: Sizes, seed: int) -> list[dict]:
    """What is to be known of each latent."""
    by_latent: list[list[Firing]] = [[] for _ in range(width)]
    for firing in firings:
        by_latent[firing.latent].append(firing)
    return [_latent(sorted(of_latent), tokens, context, sizes, seed) for of_latent in by_latent]


def _latent(firings: list[Firing], tokens: dict[int, np.ndarray], context: int, sizes: Sizes, seed: int) -> dict:
    values = [firing.value for firing in firings]
    sequences: dict[tuple[int, int], Firing] = {}
    for firing in firings:
        at = firing.shard, firing.place // context
        if at not in sequences or firing.value > sequences[at].value:
            sequences[at] = firing
    top = sorted(sequences.values(), key=lambda f: (-f.value, f.shard, f.place))[: sizes.top]
    limit = 2.0 ** max(math.frexp(max(values))[1], -125) if values else 0.0  # a float32 below is not normal
    edges = [limit * i / BINS for i in range(BINS + 1)]
    by_key = sorted(firings, key=lambda f: _key(seed, f))
    samples = [
        [f for f in by_key if limit * i / INTERVALS <= f.value < limit * (i + 1) / INTERVALS][: sizes.samples] for i in range(INTERVALS)
    ]
    return {
        "fired": len(values),
        "sum": math.fsum(values),
        "squares": math.fsum(v * v for v in values),
        "range": limit,
        "bins": np.histogram(values, bins=edges)[0].tolist() if values else [0] * BINS,
        "top": [_context(f, firings, context, sizes.window) for f in top],
        "samples": [[_context(f, firings, context, sizes.window) for f in of_interval] for of_interval in samples],
        "tokens": [int(tokens[f.shard][f.place]) for f in by_key[: sizes.tokens]],
    }


def _context(peak: Firing, firings: list[Firing], context: int, window: int) -> tuple:
    sequence = peak.place // context * context
    start = min(max(peak.place - window * 3 // 4, sequence), sequence + context - window)
    inside = [(f.place - start, f.value) for f in firings if f.shard == peak.shard and start <= f.place < start + window]
    return peak.value, peak.shard, peak.place, inside


def as_firings(firings: Iterable[Firing], width: int) -> Firings:
    """One shard's firings, as the pass has them."""
    listed = sorted(firings, key=lambda f: (f.latent, f.place))
    starts = np.searchsorted([f.latent for f in listed], np.arange(width + 1)).astype(np.int64)
    return Firings(starts, np.array([f.place for f in listed], np.int32), np.array([f.value for f in listed], np.float32))


def described(ledger: Ledger, latent: int) -> dict:
    """The same facts of a latent, as a ledger has them."""
    slots = ledger.values.shape[1]

    def context(slot: int) -> tuple:
        begin, end = ledger.offsets[latent * slots + slot : latent * slots + slot + 2]
        inside = list(zip(ledger.at[begin:end].tolist(), ledger.activations[begin:end].tolist(), strict=True))
        return (*(float(ledger.values[latent, slot]), int(ledger.shards[latent, slot]), int(ledger.places[latent, slot])), inside)

    held = ledger.shards[latent] >= 0
    samples = ledger.keys.shape[2]
    intervals = [range(ledger.top + i * samples, ledger.top + (i + 1) * samples) for i in range(INTERVALS)]
    return {
        "fired": int(ledger.fired[latent]),
        "sum": _exact(ledger.sums[latent], 149),
        "squares": _exact(ledger.squares[latent], 298),
        "range": 2.0 ** int(ledger.exponents[latent]) if ledger.fired[latent] else 0.0,
        "bins": ledger.bins[latent].tolist(),
        "top": [context(s) for s in range(ledger.top) if held[s]],
        "samples": [[context(s) for s in of_interval if held[s]] for of_interval in intervals],
        "tokens": [int(id) for id in ledger.token_ids[latent] if id >= 0],
    }


def _exact(digits: np.ndarray, power: int) -> float:
    return sum(int(digit) << 32 * i for i, digit in enumerate(digits)) / 2**power
