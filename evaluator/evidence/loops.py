"""Run the ledger's loops over firings, compiled by numba.

Legend of shapes: F latents, n firings, K top contexts, I intervals with m samples each, S = K + I * m slots, t sampled tokens.

Sums are exact: a float32 is an integer of 24 bits times a power of two, and such integers are added as digits of 32 bits, in int64. So
the order of addition makes no difference.
"""

import numpy as np
from numba import prange

from scopemill.proto.evidence import BINS, INTERVALS
from scopemill.trainer.sparse.kernels.compiled import compiled

SUM_DIGITS, SQUARE_DIGITS = 10, 19  # of 32 bits; the lowest bits are 2^-149 and 2^-298
NEVER = -(2**14)  # the range's exponent of a latent that never fired
EMPTY = np.uint64(2**64 - 1)  # the key of a place without a sample
_DIGIT = np.int64(2**32 - 1)
_BINS_A_INTERVAL = BINS // INTERVALS


@compiled()
def mixed(x):
    """Return splitmix64's output for a state (public domain, Sebastiano Vigna)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled()
def row_keys(seed, shard, places):
    """Return a hash (uint64) of each row, by its shard and place."""
    keys = np.empty(len(places), np.uint64)
    start = mixed(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(shard) + np.uint64(1))
    for i in range(len(places)):
        keys[i] = mixed(start + np.uint64(places[i]) * np.uint64(0x9E3779B97F4A7C15))
    return keys


@compiled()
def group(order, starts, latents, values, places, width):
    """Return firings by latents, each latent's by rising place.

    They are given by rows: row r has firings ``starts[r]`` to ``starts[r + 1]``, and ``order`` lists the rows by rising place.
    """
    free = np.zeros(width + 1, np.int64)
    for e in range(starts[-1]):
        free[latents[e] + 1] += 1
    for f in range(width):
        free[f + 1] += free[f]
    ends, place_at, value_at = free.copy(), np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    for i in range(len(order)):
        row = order[i]
        for e in range(starts[row], starts[row + 1]):
            at = free[latents[e]]
            free[latents[e]] = at + 1
            place_at[at], value_at[at] = places[row], values[e]
    return ends, place_at, value_at


@compiled()
def _add(digits, number, shift):
    at, rest = shift >> 5, np.uint64(shift & 31)
    shifted = number << rest
    digits[at] += np.int64(shifted & np.uint64(_DIGIT))
    digits[at + 1] += np.int64(shifted >> np.uint64(32))


@compiled()
def carry(digits):
    """Bring each digit below 2^32, in place."""
    for i in range(len(digits) - 1):
        digits[i + 1] += digits[i] >> 32
        digits[i] &= _DIGIT


@compiled()
def _before(value, shard, place, other, other_shard, other_place):
    """Return whether a context comes before another one: by falling value, then by shard and place."""
    if value != other:
        return value > other
    return shard < other_shard or (shard == other_shard and place < other_place)


@compiled()
def _insert(keys, entries, key, entry):
    """Insert a sample into its sorted place among the smallest keys."""
    at = len(keys) - 1
    if key >= keys[at]:
        return
    while at > 0 and keys[at - 1] > key:
        keys[at], entries[at] = keys[at - 1], entries[at - 1]
        at -= 1
    keys[at], entries[at] = key, entry


@compiled(parallel=True)
def count(starts, places, values, bits, keys, first, context, ledger_top, sums, squares, exponents, bins, entries, sample_keys, token_keys,
          token_entries):  # fmt: skip
    """Count one shard's firings into an empty ledger.

    ``bits`` are the values' as uint32, ``keys`` a hash of each place, and latent 0 is the SAE's latent ``first``. ``entries`` [F, S] and
    ``token_entries`` [F, t] get the number of the firing that holds each slot.
    """
    top, samples = ledger_top, (entries.shape[1] - ledger_top) // INTERVALS
    for f in prange(len(starts) - 1):
        begin, end = starts[f], starts[f + 1]
        if begin == end:
            continue
        largest = np.uint32(0)
        for e in range(begin, end):  # the bits of positive floats are in the floats' order
            largest = max(largest, bits[e])
        exponent = max(np.int64(largest >> np.uint32(23)), 1) - 126
        exponents[f] = exponent
        scale = 2.0 ** (7 - exponent)
        own = mixed(np.uint64(first + f) + np.uint64(0x632BE59BD9B4E019))
        held, best, sequence = 0, begin, places[begin] // context
        for e in range(begin, end):
            raw = np.int64(bits[e])
            power, number = raw >> 23, raw & 0x7FFFFF
            if power:
                number |= 0x800000
            else:
                power = 1
            _add(sums[f], np.uint64(number), power - 1)
            square = np.uint64(number) * np.uint64(number)
            _add(squares[f], square & np.uint64(0xFFFFFF), 2 * (power - 1))
            _add(squares[f], square >> np.uint64(24), 2 * (power - 1) + 24)
            bin = np.int64(np.float64(values[e]) * scale)
            bins[f, bin] += 1
            key = min(mixed(keys[places[e]] ^ own), EMPTY - np.uint64(1))
            interval = bin // _BINS_A_INTERVAL
            _insert(sample_keys[f, interval], entries[f, top + interval * samples : top + (interval + 1) * samples], key, e)
            _insert(token_keys[f], token_entries[f], key, e)
            if places[e] // context != sequence:
                held = _hold(entries[f], top, held, values, best)
                best, sequence = e, places[e] // context
            elif values[e] > values[best]:
                best = e
        _hold(entries[f], top, held, values, best)
        carry(sums[f])
        carry(squares[f])


@compiled()
def _hold(entries, top, held, values, entry):
    """Insert a sequence's largest firing among the top contexts; equal ones stay in the order of places."""
    if held == top and (top == 0 or values[entries[top - 1]] >= values[entry]):
        return held
    at = min(held, top - 1)
    while at > 0 and values[entries[at - 1]] < values[entry]:
        entries[at] = entries[at - 1]
        at -= 1
    entries[at] = entry
    return min(held + 1, top)


@compiled()
def window_start(place, context, window):
    """Return where the window of a place starts, inside its sequence.

    Three quarters of the window lie before the place.
    """
    sequence = place // context * context
    return min(max(place - (window * 3) // 4, sequence), sequence + context - window)


@compiled()
def window_counts(starts, places, entries, context, window, counts):
    """Write how many firings the window of each slot holds, [F, S]."""
    for f in range(len(starts) - 1):
        for s in range(entries.shape[1]):
            if entries[f, s] >= 0:
                low, high = _within(starts, places, f, entries[f, s], context, window)
                counts[f, s] = high - low


@compiled()
def fill_windows(starts, places, values, entries, context, window, offsets, at, value_at):
    """Write the firings in the window of each slot from its offset on."""
    slots = entries.shape[1]
    for f in range(len(starts) - 1):
        for s in range(slots):
            if entries[f, s] >= 0:
                low, high = _within(starts, places, f, entries[f, s], context, window)
                begin, out = window_start(places[entries[f, s]], context, window), offsets[f * slots + s]
                for e in range(low, high):
                    at[out + e - low], value_at[out + e - low] = places[e] - begin, values[e]


@compiled()
def _within(starts, places, f, entry, context, window):
    begin = window_start(places[entry], context, window)
    low = high = entry
    while low > starts[f] and places[low - 1] >= begin:
        low -= 1
    while high < starts[f + 1] and places[high] < begin + window:
        high += 1
    return low, high


@compiled()
def merge_slots(top, exponents, values, shards, places, keys, other_exponents, other_values, other_shards, other_places, other_keys, source,
                merged_keys):  # fmt: skip
    """Choose the slots of two ledgers' union.

    Slot s of the first is numbered s, of the second S + s; -1 stays empty.
    """
    slots = source.shape[1]
    samples = (slots - top) // INTERVALS
    for f in range(len(source)):
        mine = theirs = 0
        for s in range(top):
            has, other_has = mine < top and shards[f, mine] >= 0, theirs < top and other_shards[f, theirs] >= 0
            if has and (not other_has or _before(values[f, mine], shards[f, mine], places[f, mine], other_values[f, theirs],
                                                 other_shards[f, theirs], other_places[f, theirs])):  # fmt: skip
                source[f, s] = mine
                mine += 1
            elif other_has:
                source[f, s] = slots + theirs
                theirs += 1
        exponent = max(exponents[f], other_exponents[f])
        for interval in range(INTERVALS):
            for i in range(samples):
                slot = top + interval * samples + i
                if keys[f, interval, i] != EMPTY:
                    target = interval >> min(exponent - exponents[f], 31)
                    _insert(merged_keys[f, target], source[f, top + target * samples : top + (target + 1) * samples], keys[f, interval, i],
                            slot)  # fmt: skip
                if other_keys[f, interval, i] != EMPTY:
                    target = interval >> min(exponent - other_exponents[f], 31)
                    _insert(merged_keys[f, target], source[f, top + target * samples : top + (target + 1) * samples],
                            other_keys[f, interval, i], slots + slot)  # fmt: skip


@compiled()
def merge_counts(exponents, bins, keys, tokens, sums, squares, other_exponents, other_bins, other_keys, other_tokens, other_sums,
                 other_squares):  # fmt: skip
    """Add another ledger's histogram, sums and sampled tokens to the first's, in place."""
    for f in range(len(bins)):
        exponent = max(exponents[f], other_exponents[f])
        if exponent != exponents[f]:
            _halve(bins[f], min(exponent - exponents[f], 31))
        shift = min(exponent - other_exponents[f], 31)
        for b in range(BINS):
            bins[f, b >> shift] += other_bins[f, b]
        exponents[f] = exponent
        for i in range(SUM_DIGITS):
            sums[f, i] += other_sums[f, i]
        for i in range(SQUARE_DIGITS):
            squares[f, i] += other_squares[f, i]
        carry(sums[f])
        carry(squares[f])
        for i in range(other_keys.shape[1]):
            _insert(keys[f], tokens[f], other_keys[f, i], other_tokens[f, i])


@compiled()
def _halve(bins, times):
    for b in range(1, BINS):
        count = bins[b]
        bins[b] = 0
        bins[b >> times] += count


@compiled()
def gather_windows(source, offsets, at, values, other_offsets, other_at, other_values, out_offsets, out_at, out_values):
    """Copy the windows of chosen slots (see `merge_slots`) to their new offsets."""
    slots = source.shape[1]
    for f in range(len(source)):
        for s in range(slots):
            chosen, out = source[f, s], out_offsets[f * slots + s]
            if chosen >= slots:
                begin, n = other_offsets[f * slots + chosen - slots], out_offsets[f * slots + s + 1] - out
                out_at[out : out + n], out_values[out : out + n] = other_at[begin : begin + n], other_values[begin : begin + n]
            elif chosen >= 0:
                begin, n = offsets[f * slots + chosen], out_offsets[f * slots + s + 1] - out
                out_at[out : out + n], out_values[out : out + n] = at[begin : begin + n], values[begin : begin + n]
