"""Run loops over the latents that fire, on GPUs.

Legend of shapes as in `kernels.base`: B rows, F latents, d width, n entries. One program owns a whole row or a whole latent and takes
its entries in their order, so the same batch gives the same bits. A row of d numbers stays in registers, in a block of ``BLOCK_D`` >= d;
``AT_ONCE`` entries' rows are gathered together. Products and gathered rows may be float32 or bfloat16; sums are float32.
"""

import triton
import triton.language as tl


@triton.jit
def mark(products, bias, lower, marks, counts, F, BLOCK: tl.constexpr):
    """Mark the latents of row i above ``lower`` [F].

    Program i reads products [B, F] plus bias [F]. One bit for each latent, in words of 32 [B, F / 32], and their number in ``counts``
    [B]: products that are read here need not be read again to be compacted.
    """
    i = tl.program_id(0).to(tl.int64)
    words = tl.cdiv(F, 32)
    bits = tl.arange(0, 32)[None, :]
    found = tl.zeros((BLOCK // 32,), tl.int32)
    for start in range(0, words, BLOCK // 32):
        word = start + tl.arange(0, BLOCK // 32)
        latent = word[:, None] * 32 + bits
        inside = latent < F
        z = tl.load(products + i * F + latent, mask=inside, other=0.0).to(tl.float32)
        bound = tl.load(lower + latent, mask=inside, other=0.0) - tl.load(bias + latent, mask=inside, other=0.0)
        hit = ((z > bound) & inside).to(tl.int32)
        tl.store(marks + i * words + word, tl.sum(hit << bits, axis=1), mask=word < words)
        found += tl.sum(hit, axis=1)
    tl.store(counts + i, tl.sum(found, axis=0))


@triton.jit
def compact(products, bias, marks, starts, latents, values, F, BLOCK: tl.constexpr):
    """Write the marked latents of row i, ascending, and their products plus bias.

    Program i writes from position ``starts[i]`` on.
    """
    i = tl.program_id(0).to(tl.int64)
    words = tl.cdiv(F, 32)
    place = tl.load(starts + i)
    for start in range(0, F, BLOCK):
        latent = start + tl.arange(0, BLOCK)
        word = tl.load(marks + i * words + latent // 32, mask=latent < F, other=0)
        hit = (word >> (latent % 32)) & 1
        at = place + tl.cumsum(hit, axis=0) - 1
        z = tl.load(products + i * F + latent, mask=hit != 0, other=0.0).to(tl.float32)
        z += tl.load(bias + latent, mask=hit != 0, other=0.0)
        tl.store(latents + at, latent, mask=hit != 0)
        tl.store(values + at, z, mask=hit != 0)
        place += tl.sum(hit, axis=0)


@triton.jit
def _gathered(start, stop, factors, order, places, matrix, d, ORDERED: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return [BLOCK_D]: the sum over entries of factor times matrix row [d]. ``ORDERED``: ``order`` says where factors lie."""
    column = tl.arange(0, BLOCK_D)[None, :]
    total = tl.zeros((AT_ONCE, BLOCK_D), tl.float32)
    for first in range(start, stop, AT_ONCE):
        e = first + tl.arange(0, AT_ONCE)
        inside = e < stop
        factor = tl.load(factors + (tl.load(order + e, mask=inside, other=0) if ORDERED else e), mask=inside, other=0.0)
        place = tl.load(places + e, mask=inside, other=0).to(tl.int64)
        row = tl.load(matrix + place[:, None] * d + column, mask=inside[:, None] & (column < d), other=0.0).to(tl.float32)
        total += factor[:, None] * row
    return tl.sum(total, axis=0)


@triton.jit
def _dotted(row, start, stop, latents, weights, out, d, AT_ONCE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write to out[start:stop] the products of row [BLOCK_D] with these entries' weight rows [d]."""
    column = tl.arange(0, BLOCK_D)[None, :]
    for first in range(start, stop, AT_ONCE):
        e = first + tl.arange(0, AT_ONCE)
        inside = e < stop
        latent = tl.load(latents + e, mask=inside, other=0).to(tl.int64)
        w = tl.load(weights + latent[:, None] * d + column, mask=inside[:, None] & (column < d), other=0.0).to(tl.float32)
        tl.store(out + e, tl.sum(row[None, :] * w, axis=1), mask=inside)


@triton.jit
def decode(starts, latents, values, weights, out, d, AT_ONCE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write to out[i] the sum over row i's entries of value times weight row.

    Program i takes row i; weights are [F, d].
    """
    i = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    start, stop = tl.load(starts + i), tl.load(starts + i + 1)
    total = _gathered(start, stop, values, values, latents, weights, d, False, AT_ONCE, BLOCK_D)
    tl.store(out + i * d + column, total, mask=column < d)


@triton.jit
def products(starts, latents, rows, weights, out, d, AT_ONCE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write to out [n], at row i's entries, rows[i]'s products with weight rows.

    Program i takes row i; weights are [F, d].
    """
    i = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    row = tl.load(rows + i * d + column, mask=column < d, other=0.0).to(tl.float32)
    _dotted(row, tl.load(starts + i), tl.load(starts + i + 1), latents, weights, out, d, AT_ONCE, BLOCK_D)


@triton.jit
def reconstruction_error(starts, latents, values, weights, target, error, squares, out, d, AT_ONCE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write row i's error, squared error and products with the weights.

    Program i writes `decode` less target to error[i], the sum of its squares to squares[i], and its `products` to out [n].
    """
    i = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    start, stop = tl.load(starts + i), tl.load(starts + i + 1)
    row = _gathered(start, stop, values, values, latents, weights, d, False, AT_ONCE, BLOCK_D)
    row -= tl.load(target + i * d + column, mask=column < d, other=0.0)
    tl.store(error + i * d + column, row, mask=column < d)
    tl.store(squares + i, tl.sum(row * row, axis=0))
    _dotted(row, start, stop, latents, weights, out, d, AT_ONCE, BLOCK_D)


@triton.jit
def sum_by_latent(starts, order, values, out, BLOCK: tl.constexpr):
    """Write to out[f] (program f) the sum of the values [n] of latent f's entries."""
    f = tl.program_id(0)
    stop = tl.load(starts + f + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(tl.load(starts + f), stop, BLOCK):
        e = first + tl.arange(0, BLOCK)
        total += tl.load(values + tl.load(order + e, mask=e < stop, other=0), mask=e < stop, other=0.0)
    tl.store(out + f, tl.sum(total, axis=0))


@triton.jit
def gradient(starts, rows, order, factors, matrix, total, d, AT_ONCE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Add to total[f] the sum over latent f's entries of factor times row.

    Program f takes latent f; the rows are of a matrix [B, d].
    """
    f = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    place = total + f * d + column
    g = _gathered(tl.load(starts + f), tl.load(starts + f + 1), factors, order, rows, matrix, d, True, AT_ONCE, BLOCK_D)
    tl.store(place, tl.load(place, mask=column < d, other=0.0) + g, mask=column < d)


@triton.jit
def _adam(
    g, f, weights, first, second, decay, rate, beta1, beta2, epsilon, first_correction, correction, d,
    UNIT: tl.constexpr, FIRST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Project, update and normalise row f, from its gradient g [BLOCK_D]. ``FIRST``: there are first moments."""
    column = tl.arange(0, BLOCK_D)
    inside, place = column < d, f * d + column
    w, v = tl.load(weights + place, mask=inside, other=0.0), tl.load(second + place, mask=inside, other=0.0)
    if UNIT:
        g -= tl.sum(g * w, axis=0) * w
    v = beta2 * (tl.load(decay + f) * v) + (1 - beta2) * g * g
    if FIRST:
        m = beta1 * tl.load(first + place, mask=inside, other=0.0) + (1 - beta1) * g
        tl.store(first + place, m, mask=inside)
        g = m / first_correction
    w -= rate * g / (tl.sqrt(v) / correction + epsilon)
    if UNIT:
        w = w / tl.sqrt(tl.sum(w * w, axis=0))
    tl.store(second + place, v, mask=inside)
    tl.store(weights + place, w, mask=inside)


@triton.jit(do_not_specialize=["update"])
def update_rows(
    starts, rows, order, factors, matrix, weights, first, second, updated, decay, update,
    rate, beta1, beta2, epsilon, first_correction, correction, d,
    UNIT: tl.constexpr, FIRST: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Update weight row f by Adam.

    That is if latent f has entries; with first moments always.

    Program f takes row f of the weights [F, d]. ``decay`` [F] is that of missed updates.
    """
    f = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(starts + f), tl.load(starts + f + 1)
    if FIRST or start < stop:
        g = _gathered(start, stop, factors, order, rows, matrix, d, True, AT_ONCE, BLOCK_D)
        _adam(g, f, weights, first, second, decay, rate, beta1, beta2, epsilon, first_correction, correction, d, UNIT, FIRST, BLOCK_D)
        tl.store(updated + f, update)


@triton.jit
def update_dense(
    gradients, weights, first, second, decay, rate, beta1, beta2, epsilon, first_correction, correction, d,
    UNIT: tl.constexpr, FIRST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Update weight row f by Adam from dense gradients.

    Program f takes row f of the weights [F, d]; gradients are [F, d].
    """
    f = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    g = tl.load(gradients + f * d + column, mask=column < d, other=0.0)
    _adam(g, f, weights, first, second, decay, rate, beta1, beta2, epsilon, first_correction, correction, d, UNIT, FIRST, BLOCK_D)
