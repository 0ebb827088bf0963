"""Make the tables of evidence from ledger, weights and sampled rows."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from scopemill.evaluator.evidence.ledger import Ledger
from scopemill.evaluator.evidence.logits import Extremes
from scopemill.evaluator.evidence.neighbours import Neighbours
from scopemill.evaluator.evidence.schema import EXAMPLE, LATENTS
from scopemill.harvester.text.packing import Sequences
from scopemill.proto.evidence import BINS, TOP


def statistics(ledger: Ledger, rows: int) -> dict[str, Any]:
    """Return the columns of `LATENTS` that a ledger of ``rows`` rows decides."""
    fired = ledger.fired
    ranges = np.where(fired > 0, np.ldexp(1.0, ledger.exponents.clip(min=-149)), 0.0).astype(np.float32)
    moments = [_moments(*row) for row in zip(fired.tolist(), ledger.sums, ledger.squares, strict=True)]
    token, share, entropy = _tokens(ledger.token_ids)
    return {
        "fired": fired,
        "density": fired / rows,
        "max": ledger.values[:, 0] if ledger.top else np.zeros(len(fired), np.float32),
        "mean": np.array([mean for mean, _ in moments]),
        "std": np.array([std for _, std in moments]),
        "histogram_range": ranges,
        "histogram": _lists(ledger.bins, np.full(len(fired), BINS), pa.int64()),
        "top_token": pa.array(token, pa.int32(), mask=token < 0),
        "top_token_share": share,
        "token_entropy": entropy,
    }


def _moments(count: int, sums: np.ndarray, squares: np.ndarray) -> tuple[float, float]:
    """Return mean and deviation, each rounded once from exact sums."""
    if not count:
        return 0.0, 0.0
    total, square = (sum(int(digit) << 32 * i for i, digit in enumerate(digits)) for digits in (sums, squares))
    return total / (count << 149), math.sqrt((count * square - total * total) / (count * count << 298))


def _tokens(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the most frequent token of each row of ids, its share, and the entropy in bits; among equals the smallest id."""
    token, share, entropy = (np.full(len(ids), empty, dtype) for empty, dtype in ((-1, np.int32), (0, np.float32), (0, np.float32)))
    for latent, row in enumerate(ids):
        found, counts = np.unique(row[row >= 0], return_counts=True)
        if len(found):
            p = counts / counts.sum()
            token[latent], share[latent] = found[counts.argmax()], p.max()
            entropy[latent] = max(0.0, -float((p * np.log2(p)).sum()))
    return token, share, entropy


def latents_table(
    first: int,
    columns: dict[str, Any],
    logits: tuple[Extremes, ...],
    nearest: Neighbours,
    cofiring: Neighbours,
    cluster: np.ndarray,
    alignment: np.ndarray | None,
    norms: np.ndarray,
) -> pa.Table:
    """Return the rows of `LATENTS` of consecutive latents, ``first`` the first one."""
    rows = len(norms)
    data = columns | {"latent": np.arange(first, first + rows), "cluster": cluster, "decoder_norm": norms}
    data["encoder_decoder_cosine"] = pa.nulls(rows, pa.float32()) if alignment is None else alignment
    for name, found in zip(("promoted", "suppressed", "all_promoted", "all_suppressed"), logits, strict=True):
        full = np.full(rows, found.tokens.shape[1])
        data[f"{name}_tokens"], data[f"{name}_values"] = _lists(found.tokens, full, pa.int32()), _lists(found.values, full, pa.float32())
    for name, values, near in (("nearest", "nearest_cosines", nearest), ("cofiring", "cofiring_phi", cofiring)):
        counts = (near.latents >= 0).sum(1)
        data[f"{name}_latents"], data[values] = _lists(near.latents, counts, pa.int32()), _lists(near.scores, counts, pa.float32())
    return pa.table([_array(data[field.name], field.type) for field in LATENTS], schema=LATENTS)


def _array(data: Any, kind: pa.DataType) -> pa.Array:
    return data if isinstance(data, pa.Array) else pa.array(data).cast(kind)


def _lists(values: np.ndarray, counts: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Return the first ``counts`` values of each row as lists."""
    kept = np.arange(values.shape[1]) < counts[:, None]
    return pa.ListArray.from_arrays(_list_offsets(counts), pa.array(np.ascontiguousarray(values[kept])).cast(kind))


def examples(ledger: Ledger, context: int, window: int, text: Callable[[int], Sequences]) -> pa.Array:
    """Return each latent's examples (see `EXAMPLE`).

    The top ones come first, then intervals from above, each by falling activation.
    ``text`` gives the packed text of a shard. It is asked once for each shard.
    """
    latent, slot = np.nonzero(ledger.shards >= 0)
    samples = max(1, ledger.keys.shape[2])
    interval = np.where(slot < ledger.top, TOP, (slot - ledger.top) // samples)
    value, shard, place = (x[latent, slot] for x in (ledger.values, ledger.shards, ledger.places))
    order = np.lexsort((place, shard, -value, -interval, interval != TOP, latent))
    latent, slot, interval, value, shard, place = (x[order] for x in (latent, slot, interval, value, shard, place))
    sequence, inside = np.divmod(place.astype(np.int64), context)
    start = np.clip(inside - window * 3 // 4, 0, context - window)
    tokens = np.empty((len(place), window), np.int32)
    document, position = np.empty(len(place), np.int64), np.empty(len(place), np.int32)
    for number in np.unique(shard).tolist():
        block, own = text(number), shard == number
        tokens[own] = block.tokens.ravel()[(sequence * context + start)[own, None] + np.arange(window)]
        document[own], position[own] = block.document.ravel()[place[own]], block.position.ravel()[place[own]]
    columns = [interval, value, inside - start, document, position, shard, sequence, start]
    arrays = [pa.array(column).cast(EXAMPLE.field(i).type) for i, column in enumerate(columns)]
    arrays += [_rows_as_lists(tokens), _rows_as_lists(_windows(ledger, latent, slot, window))]
    counts = np.bincount(latent, minlength=len(ledger.fired))
    return pa.ListArray.from_arrays(_list_offsets(counts), pa.StructArray.from_arrays(arrays, fields=list(EXAMPLE)))


def _windows(ledger: Ledger, latent: np.ndarray, slot: np.ndarray, window: int) -> np.ndarray:
    """Return the activations [n, window] of the contexts in some slots."""
    at = latent * ledger.values.shape[1] + slot
    begin, counts = ledger.offsets[at], ledger.offsets[at + 1] - ledger.offsets[at]
    rows = np.repeat(np.arange(len(at)), counts)
    firings = np.arange(len(rows)) + np.repeat(begin - (counts.cumsum() - counts), counts)
    activations = np.zeros((len(at), window), np.float32)
    activations[rows, ledger.at[firings]] = ledger.activations[firings]
    return activations


def _rows_as_lists(values: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(_list_offsets(np.full(len(values), values.shape[1])), pa.array(values.ravel()))


def _list_offsets(counts: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32))


def alignment(encoder: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """Return the cosine [F] of each latent's encoder and decoder row, else 0."""
    a, b = (np.asarray(x, np.float64) for x in (encoder, decoder))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0).astype(np.float32)
