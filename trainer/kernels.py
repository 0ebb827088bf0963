"""Loops over the latents that fire, compiled by numba for the CPU. Where numba is missing, training stays dense.

Legend of shapes: B rows, F latents, d width, n entries. An entry is a place [row, latent] of the batch that matters; entries
are kept by rows (``starts`` [B + 1], ``latents`` [n]) and, for sums over rows, by latents as well (``Columns``). Each loop
gives the same bits whatever the number of threads: a thread owns whole rows or whole latents.
"""

from typing import NamedTuple

import numpy as np
import torch

try:
    import numba
    from numba import njit, prange
except ImportError:  # an optional package: everything has a dense way too
    njit = None

AVAILABLE = njit is not None
CHUNK = 64  # latents looked at together: most chunks hold nothing, and that is seen in four vector comparisons
REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}  # sums may be vectorised; infinities and NaNs are kept


class Columns(NamedTuple):
    """Entries by latents: latent f has those from ``starts[f]`` up to ``starts[f + 1]``."""

    starts: np.ndarray  # [F + 1]
    rows: np.ndarray  # [n]
    order: np.ndarray  # [n]: where each lies among the entries by rows


def serve(example: torch.Tensor) -> bool:
    """Whether the loops here can work on tensors like this one."""
    return AVAILABLE and example.device.type == "cpu" and example.dtype == torch.float32


if AVAILABLE:

    def use_threads(count: int) -> None:
        """From this thread, run loops on at most so many: trainers that share a machine must not each take all of it."""
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))

    def _compiled(**options):
        return njit(parallel=True, cache=True, nogil=True, **options)

    @_compiled()
    def scan(pre, lower, bounds, counts, latents, values):
        """Entries of pre [B, F] above ``lower`` [F]. Thread t takes rows ``bounds[t]`` to ``bounds[t + 1]`` and writes to row t of
        ``latents`` and ``values``; ``counts`` [B] gets the entries of each row. False if they do not fit."""
        width, fits = pre.shape[1], np.ones(len(bounds) - 1, np.bool_)
        whole = width // CHUNK
        for t in prange(len(bounds) - 1):
            found, value_at, n = latents[t], values[t], 0
            for i in range(bounds[t], bounds[t + 1]):
                row, before = pre[i], n
                for c in range(whole):
                    z, lo = row[c * CHUNK : (c + 1) * CHUNK], lower[c * CHUNK : (c + 1) * CHUNK]
                    hit = np.uint32(0)
                    for j in range(CHUNK):
                        hit |= np.uint32(z[j] > lo[j])
                    if hit:
                        if n + CHUNK > len(found):
                            fits[t] = False
                            break
                        for j in range(CHUNK):
                            if z[j] > lo[j]:
                                found[n], value_at[n] = c * CHUNK + j, z[j]
                                n += 1
                for j in range(whole * CHUNK, width):
                    if row[j] > lower[j] and n < len(found):
                        found[n], value_at[n] = j, row[j]
                        n += 1
                counts[i] = n - before
                if n + CHUNK > len(found):
                    fits[t] = False
                    break
        return fits.all()

    @njit(cache=True, nogil=True)
    def _above(row, lower, found, value_at):
        """The entries of a row [F] above a number, as many as there is room for; returns how many there are."""
        n = 0
        for c in range(len(row) // CHUNK):
            z, hit = row[c * CHUNK : (c + 1) * CHUNK], np.uint32(0)
            for j in range(CHUNK):
                hit |= np.uint32(z[j] > lower)
            if hit:
                for j in range(CHUNK):
                    if z[j] > lower:
                        if n < len(found):
                            found[n], value_at[n] = c * CHUNK + j, z[j]
                        n += 1
        for j in range(len(row) // CHUNK * CHUNK, len(row)):
            if row[j] > lower:
                if n < len(found):
                    found[n], value_at[n] = j, row[j]
                n += 1
        return n

    @_compiled()
    def largest(products, bias, k, bounds, latents, values):
        """The k largest of each row of products [B, F] plus bias [F], into [B, k], in no particular order.

        Rows differ little in their k-th value: the last row's, lowered a bit, leaves few candidates to choose from. Thread t takes rows
        ``bounds[t]`` to ``bounds[t + 1]``; what is found does not depend on it.
        """
        width = products.shape[1]
        for t in prange(len(bounds) - 1):
            guess, room = -np.inf, min(width, 8 * k + CHUNK)
            candidates, at, row = np.empty(room, np.int32), np.empty(room, np.float32), np.empty(width, np.float32)
            for i in range(bounds[t], bounds[t + 1]):
                for j in range(width):
                    row[j] = products[i, j] + bias[j]
                n = _above(row, guess, candidates, at)
                if k <= n <= room:
                    smallest = np.partition(at[:n], n - k)[n - k]
                else:
                    smallest = np.partition(row, width - k)[width - k]
                above = _above(row, smallest, latents[i], values[i])
                for j in range(width):  # then as many of its equals as there is room for
                    if above == k:
                        break
                    if row[j] == smallest:
                        latents[i, above], values[i, above] = j, row[j]
                        above += 1
                guess = smallest - np.float32(0.1) * abs(smallest)

    @_compiled()
    def moments(rows):
        """Sums over rows [B, d] in float64: of each column [d], and of all squares. By blocks, so that threads do not decide the bits."""
        blocks, d = 16, rows.shape[1]
        sums, squares = np.zeros((blocks, d)), np.zeros(blocks)
        for b in prange(blocks):
            for i in range(b * len(rows) // blocks, (b + 1) * len(rows) // blocks):
                row = rows[i]
                for j in range(d):
                    sums[b, j] += row[j]
                    squares[b] += np.float64(row[j]) * row[j]
        return sums.sum(0), squares.sum()

    @njit(cache=True, nogil=True)
    def by_latents(starts, latents, width):
        """`Columns` of entries by rows."""
        ends = np.zeros(width + 1, np.int64)
        for e in range(len(latents)):
            ends[latents[e] + 1] += 1
        for f in range(width):
            ends[f + 1] += ends[f]
        free, rows, order = ends[:-1].copy(), np.empty(len(latents), np.int32), np.empty(len(latents), np.int32)
        for i in range(len(starts) - 1):
            for e in range(starts[i], starts[i + 1]):
                place = free[latents[e]]
                free[latents[e]] += 1
                rows[place], order[place] = i, e
        return ends, rows, order

    @njit(cache=True, nogil=True, inline="always", fastmath=REASSOCIATE)
    def _add_up(total, start, stop, factors, places, order, matrix):
        """total += sum over entries of factor * row of the matrix, four rows at a time."""
        d, e = len(total), start
        while e + 4 <= stop:
            f0, f1, f2, f3 = factors[order[e]], factors[order[e + 1]], factors[order[e + 2]], factors[order[e + 3]]
            r0, r1, r2, r3 = matrix[places[e]], matrix[places[e + 1]], matrix[places[e + 2]], matrix[places[e + 3]]
            for j in range(d):
                total[j] += f0 * r0[j] + f1 * r1[j] + f2 * r2[j] + f3 * r3[j]
            e += 4
        while e < stop:
            f0, r0 = factors[order[e]], matrix[places[e]]
            for j in range(d):
                total[j] += f0 * r0[j]
            e += 1

    @_compiled(fastmath=REASSOCIATE)
    def decode(starts, latents, values, weights, out):
        """out [B, d] = the sum of weight rows [F, d] of each row's entries, each times its value [n]."""
        every = np.arange(len(latents))
        for i in prange(len(starts) - 1):
            out[i] = 0
            _add_up(out[i], starts[i], starts[i + 1], values, latents, every, weights)

    @njit(cache=True, nogil=True, inline="always", fastmath=REASSOCIATE)
    def _products_of_row(x, start, stop, latents, weights, out):
        """out[start:stop] = x times the weights' rows of these entries, four at a time."""
        e = start
        while e + 4 <= stop:
            w0, w1, w2, w3 = weights[latents[e]], weights[latents[e + 1]], weights[latents[e + 2]], weights[latents[e + 3]]
            s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(len(x)):
                s0 += x[j] * w0[j]
                s1 += x[j] * w1[j]
                s2 += x[j] * w2[j]
                s3 += x[j] * w3[j]
            out[e], out[e + 1], out[e + 2], out[e + 3] = s0, s1, s2, s3
            e += 4
        while e < stop:
            w0, s0 = weights[latents[e]], np.float32(0)
            for j in range(len(x)):
                s0 += x[j] * w0[j]
            out[e] = s0
            e += 1

    @_compiled(fastmath=REASSOCIATE)
    def products(starts, latents, rows, weights, out):
        """out [n] = rows [B, d] times weights [F, d], at the entries only."""
        for i in prange(len(starts) - 1):
            _products_of_row(rows[i], starts[i], starts[i + 1], latents, weights, out)

    @_compiled(fastmath=REASSOCIATE)
    def rebuild(starts, latents, values, weights, target, error, squares, out):
        """`decode` and `products` while a row's weights are in the cache: error [B, d] = what is rebuilt - target, its ``squares`` [B]
        summed over d, and out [n] = error times weights at the entries."""
        every = np.arange(len(latents))
        for i in prange(len(starts) - 1):
            row, wanted, square = error[i], target[i], np.float32(0)
            row[:] = 0
            _add_up(row, starts[i], starts[i + 1], values, latents, every, weights)
            for j in range(len(row)):
                row[j] -= wanted[j]
                square += row[j] * row[j]
            squares[i] = square
            _products_of_row(row, starts[i], starts[i + 1], latents, weights, out)

    @_compiled(fastmath=REASSOCIATE)
    def gradient(starts, rows, order, factors, matrix, out):
        """out [F, d] += the sum over each latent's entries of its factor [n] times the matrix's row [B, d]."""
        for f in prange(len(starts) - 1):
            _add_up(out[f], starts[f], starts[f + 1], factors, rows, order, matrix)

    @njit(cache=True, nogil=True, inline="always", fastmath=REASSOCIATE)
    def _adam_row(w, v, g, decay, rate, beta2, epsilon, correction, unit):
        """One row's projection, update and renormalisation. ``decay`` makes up for the updates in which it had no gradient."""
        if unit:
            along = np.float32(0)
            for j in range(len(w)):
                along += g[j] * w[j]
            for j in range(len(w)):
                g[j] -= along * w[j]
        square = np.float32(0)
        for j in range(len(w)):
            u = beta2 * (decay * v[j]) + (np.float32(1) - beta2) * g[j] * g[j]
            v[j] = u
            w[j] -= rate * g[j] / (np.sqrt(u) / correction + epsilon)
            square += w[j] * w[j]
        if unit:
            scale = np.float32(1) / np.sqrt(square)
            for j in range(len(w)):
                w[j] *= scale

    @_compiled(fastmath=REASSOCIATE)
    def update_rows(starts, rows, order, factors, matrix, weights, moments, updated, update, rate, beta2, epsilon, correction, unit):
        """Adam's update number ``update`` of the rows that have entries; their gradient, as of `gradient`, never leaves the cache.

        With beta1 = 0 a row without a gradient keeps its weights, and of its second moment only the decay is missed: ``updated``
        [F] says since which update, and it is made up for when the row has a gradient again.
        """
        for f in prange(len(starts) - 1):
            if starts[f] < starts[f + 1]:
                g = np.zeros(weights.shape[1], np.float32)
                _add_up(g, starts[f], starts[f + 1], factors, rows, order, matrix)
                decay = np.float32(np.float64(beta2) ** (update - 1 - updated[f]))
                _adam_row(weights[f], moments[f], g, decay, rate, beta2, epsilon, correction, unit)
                updated[f] = update

    @_compiled(fastmath=REASSOCIATE)
    def update_dense(gradients, weights, moments, updated, update, rate, beta2, epsilon, correction, unit):
        """The same for gradients [F, d] of every row, which it overwrites."""
        for f in prange(len(weights)):
            decay = np.float32(np.float64(beta2) ** (update - 1 - updated[f]))
            _adam_row(weights[f], moments[f], gradients[f], decay, rate, beta2, epsilon, correction, unit)
            updated[f] = update
