"""Run loops over the latents that fire, compiled by numba for the CPU.

Legend of shapes: B rows, F latents, d width, n entries, laid out as `kernels.base` says. Each loop gives the same bits whatever the
number of threads: a thread owns whole rows or whole latents.
"""

import numpy as np
from numba import prange
from numba.cpython.unsafe.numbers import trailing_zeros

from scopemill.trainer.sparse.kernels.compiled import compiled

CHUNK = 64  # latents compared together: a bit of one word for each
REASSOCIATE = {"reassoc", "contract", "nsz", "arcp"}  # sums may be vectorised; infinities and NaNs are kept


@compiled()
def _above(row, lower, found, value_at, n):
    """Write a row's entries [F] above ``lower`` [F] from position n on, as many as there is room for.

    Return the position after the last, as if there were room for all.
    """
    for start in range(0, len(row), CHUNK):
        z, bounds = row[start : start + CHUNK], lower[start : start + CHUNK]
        hits = np.uint64(0)
        if len(z) == CHUNK:  # of a known length, so that it becomes vector comparisons
            for j in range(CHUNK):
                hits |= np.uint64(z[j] > bounds[j]) << np.uint64(j)
        else:
            for j in range(len(z)):
                hits |= np.uint64(z[j] > bounds[j]) << np.uint64(j)
        while hits:
            j = trailing_zeros(hits)
            if n < len(found):
                found[n], value_at[n] = start + j, z[j]
            n += 1
            hits &= hits - np.uint64(1)
    return n


@compiled(parallel=True)
def scan(pre, lower, bounds, counts, latents, values):
    """Find the entries of pre [B, F] above ``lower`` [F].

    Returns False if they do not fit. Thread t takes rows ``bounds[t]`` to ``bounds[t + 1]`` and writes to row t of ``latents`` and
    ``values``; ``counts`` [B] gets the number of entries of each row.
    """
    fits = np.ones(len(bounds) - 1, np.bool_)
    for t in prange(len(bounds) - 1):
        n = 0
        for i in range(bounds[t], bounds[t + 1]):
            before, n = n, _above(pre[i], lower, latents[t], values[t], n)
            counts[i] = n - before
            if n > latents.shape[1]:
                fits[t] = False
                break
    return fits.all()


@compiled(parallel=True)
def largest(products, bias, k, bounds, latents, values):
    """Write the k largest of each row into [B, k], in any order.

    The rows are products [B, F] plus bias [F]. Rows differ little in their k-th value: that of the row before, lowered a bit, leaves
    few candidates. Thread t takes rows ``bounds[t]`` to ``bounds[t + 1]``; the result does not depend on the bounds.
    """
    width = products.shape[1]
    every = np.arange(width).astype(np.int32)
    for t in prange(len(bounds) - 1):
        guess, room = np.float32(-np.inf), min(width, 8 * k + CHUNK)
        candidates, at, row = np.empty(room, np.int32), np.empty(room, np.float32), np.empty(width, np.float32)
        lower = np.empty(width, np.float32)
        for i in range(bounds[t], bounds[t + 1]):
            for j in range(width):
                lower[j] = guess - bias[j]
            n = _above(products[i], lower, candidates, at, 0)
            if k <= n <= room:
                for c in range(n):
                    at[c] += bias[candidates[c]]
                smallest = _largest_of(at[:n], candidates[:n], k, latents[i], values[i])
            else:
                for j in range(width):
                    row[j] = products[i, j] + bias[j]
                smallest = _largest_of(row, every, k, latents[i], values[i])
            guess = smallest - np.float32(0.1) * abs(smallest)


@compiled()
def _largest_of(values, numbers, k, numbers_out, out):
    """Write the k largest values and their numbers, among equals the first; return the smallest of them."""
    smallest = np.partition(values, len(values) - k)[len(values) - k]
    n = 0
    for c in range(len(values)):
        if values[c] > smallest:
            numbers_out[n], out[n] = numbers[c], values[c]
            n += 1
    for c in range(len(values)):
        if n == k:
            break
        if values[c] == smallest:
            numbers_out[n], out[n] = numbers[c], values[c]
            n += 1
    while n < k:  # where all are NaN, nothing compares
        numbers_out[n], out[n] = numbers[n], np.nan
        n += 1
    return smallest


@compiled(parallel=True, fastmath=REASSOCIATE)
def moments(rows):
    """Return sums over rows in float64: of each column, and of all squares.

    The rows are [B, d], the sums of columns [d].
    """
    # By blocks, so that the bits do not depend on the threads.
    blocks, d = 16, rows.shape[1]
    sums, squares = np.zeros((blocks, d)), np.zeros(blocks)
    for b in prange(blocks):
        square = 0.0
        for i in range(b * len(rows) // blocks, (b + 1) * len(rows) // blocks):
            row = rows[i]
            for j in range(d):
                sums[b, j] += row[j]
                square += np.float64(row[j]) * row[j]
        squares[b] = square
    return sums.sum(0), squares.sum()


@compiled()
def by_latents(starts, latents, width):
    """Return starts, rows and order of `Columns`, from entries by rows."""
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


@compiled(parallel=True)
def sum_by_latent(starts, order, values, out):
    """Write to out [F], per latent, the sum of its values [n]."""
    for f in prange(len(out)):
        total = np.float32(0)
        for e in range(starts[f], starts[f + 1]):
            total += values[order[e]]
        out[f] = total


@compiled(inline="always", fastmath=REASSOCIATE)
def _add_rows(total, start, stop, factors, places, order, matrix):
    """Add to total the sum over entries of factor times matrix row, four rows at a time."""
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


@compiled(parallel=True, fastmath=REASSOCIATE)
def decode(starts, latents, values, weights, out):
    """Write to out, per row, the sum over its entries of value times weight row.

    Out is [B, d], values are [n], weight rows [F, d].
    """
    every = np.arange(len(latents))
    for i in prange(len(starts) - 1):
        out[i] = 0
        _add_rows(out[i], starts[i], starts[i + 1], values, latents, every, weights)


@compiled(inline="always", fastmath=REASSOCIATE)
def _products_of_row(x, start, stop, latents, weights, out):
    """Write to out[start:stop] the products of x with these entries' weight rows, four at a time."""
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


@compiled(parallel=True, fastmath=REASSOCIATE)
def products(starts, latents, rows, weights, out):
    """Write to out [n] the products of rows with weight rows, at the entries only.

    Rows are [B, d], weight rows [F, d].
    """
    for i in prange(len(starts) - 1):
        _products_of_row(rows[i], starts[i], starts[i + 1], latents, weights, out)


@compiled(parallel=True, fastmath=REASSOCIATE)
def reconstruction_error(starts, latents, values, weights, target, error, squares, out):
    """Write error, squared errors of the rows, and products with the weights.

    The error is [B, d], its ``squares`` [B] are summed over d, and out [n] gets its products at the entries. The error is `decode` less
    the target. One loop does all, while a row's weights are in the cache.
    """
    every = np.arange(len(latents))
    for i in prange(len(starts) - 1):
        row, wanted, square = error[i], target[i], np.float32(0)
        row[:] = 0
        _add_rows(row, starts[i], starts[i + 1], values, latents, every, weights)
        for j in range(len(row)):
            row[j] -= wanted[j]
            square += row[j] * row[j]
        squares[i] = square
        _products_of_row(row, starts[i], starts[i + 1], latents, weights, out)


@compiled(parallel=True, fastmath=REASSOCIATE)
def gradient(starts, rows, order, factors, matrix, out):
    """Add to out [F, d] the sum over a latent's entries of factor times row.

    Factors are [n], and the rows are of a matrix [B, d].
    """
    for f in prange(len(starts) - 1):
        _add_rows(out[f], starts[f], starts[f + 1], factors, rows, order, matrix)


@compiled(inline="always", fastmath=REASSOCIATE)
def _adam_row(w, m, v, g, decay, rate, beta1, beta2, epsilon, first_correction, correction, unit):
    """Project, update and normalise one row. ``decay`` is that of the updates in which the row had no gradient.

    ``m`` [0]: there are no first moments.
    """
    if unit:
        along = np.float32(0)
        for j in range(len(w)):
            along += g[j] * w[j]
        for j in range(len(w)):
            g[j] -= along * w[j]
    square = np.float32(0)
    if len(m):
        for j in range(len(w)):
            u = beta2 * (decay * v[j]) + (np.float32(1) - beta2) * g[j] * g[j]
            s = beta1 * m[j] + (np.float32(1) - beta1) * g[j]
            v[j], m[j] = u, s
            w[j] -= rate * (s / first_correction) / (np.sqrt(u) / correction + epsilon)
            square += w[j] * w[j]
    else:
        for j in range(len(w)):
            u = beta2 * (decay * v[j]) + (np.float32(1) - beta2) * g[j] * g[j]
            v[j] = u
            w[j] -= rate * g[j] / (np.sqrt(u) / correction + epsilon)
            square += w[j] * w[j]
    if unit:
        scale = np.float32(1) / np.sqrt(square)
        for j in range(len(w)):
            w[j] *= scale


@compiled(parallel=True, fastmath=REASSOCIATE)
def update_rows(
    starts, rows, order, factors, matrix, weights, first, second, updated,
    update, rate, beta1, beta2, epsilon, first_correction, correction, unit,
):  # fmt: skip
    """Update weight rows by Adam.

    These are the rows that have entries; with first moments [F, d] all rows.

    Their gradient, as of `gradient`, never leaves the cache. Without first moments [F, 0] a row without a gradient keeps its weights,
    and of its second moment only the decay is due. ``updated`` [F] is the last update of each row; missed decay is applied when the row
    has a gradient again.
    """
    for f in prange(len(starts) - 1):
        if starts[f] < starts[f + 1] or first.shape[1]:
            g = np.zeros(weights.shape[1], np.float32)
            _add_rows(g, starts[f], starts[f + 1], factors, rows, order, matrix)
            decay = np.float32(np.float64(beta2) ** (update - 1 - updated[f]))
            _adam_row(weights[f], first[f], second[f], g, decay, rate, beta1, beta2, epsilon, first_correction, correction, unit)
            updated[f] = update


@compiled(parallel=True, fastmath=REASSOCIATE)
def update_dense(
    gradients, weights, first, second, updated, update, rate, beta1, beta2, epsilon, first_correction, correction, unit
):  # fmt: skip
    """Update every row by Adam from dense gradients [F, d], which are overwritten."""
    for f in prange(len(weights)):
        decay = np.float32(np.float64(beta2) ** (update - 1 - updated[f]))
        _adam_row(weights[f], first[f], second[f], gradients[f], decay, rate, beta1, beta2, epsilon, first_correction, correction, unit)
        updated[f] = update
