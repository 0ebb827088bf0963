"""Keep the ledger of an SAE's latents: what the rows so far say.

`Ledger.of` counts the firings of one shard, `Ledger.merged` joins ledgers of different shards. Merging is exact, associative and
commutative, so neither the order of shards nor their division over actors changes a bit.

- Top contexts: the K largest of the sequences' maxima, by falling value, then by shard and place.
- The histogram has `BINS` bins over [0, R), R the power of two above the maximum. As R doubles, pairs of bins merge.
- Each of the `INTERVALS` intervals of [0, R) keeps the firings with the smallest hash of (row, latent): a uniform sample.
- The smallest hashes of all firings give a uniform sample of the tokens on which a latent fires.

Legend of shapes: F latents, S slots (K top contexts, then the intervals' samples), t sampled tokens.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from scopemill.evaluator.evidence import loops
from scopemill.proto.evidence import BINS, INTERVALS


class Sizes(NamedTuple):
    """Hold how much a ledger keeps of each latent."""

    top: int  # contexts
    samples: int  # of each interval
    tokens: int
    window: int  # tokens of a context; at most the context length

    @property
    def slots(self) -> int:
        """Return the number of contexts that a latent can have."""
        return self.top + INTERVALS * self.samples


@dataclass(frozen=True)
class Firings:
    """Hold all firings of a shard's rows by latents, each latent's by rising place.

    A place is the number of a token in the shard's packed text: sequence times context length plus position.
    """

    starts: np.ndarray  # [F + 1], int64
    places: np.ndarray  # [n], int32
    values: np.ndarray  # [n], float32


@dataclass(frozen=True)
class Ledger:
    """Hold what is known of each latent. Slots without a context have shard -1."""

    fired: np.ndarray  # [F], int64
    sums: np.ndarray  # [F, digits] of the exact sum, see `loops`
    squares: np.ndarray  # [F, digits] of the exact sum of squares
    exponents: np.ndarray  # [F], int32: the histogram's range is 2^exponent
    bins: np.ndarray  # [F, BINS], int64
    values: np.ndarray  # [F, S], float32
    shards: np.ndarray  # [F, S], int32
    places: np.ndarray  # [F, S], int32
    keys: np.ndarray  # [F, INTERVALS, m], uint64
    token_keys: np.ndarray  # [F, t], uint64
    token_ids: np.ndarray  # [F, t], int32
    offsets: np.ndarray  # [F * S + 1], int64: where each slot's window starts in the next two
    at: np.ndarray  # int16, a firing's place in its window
    activations: np.ndarray  # float32

    @property
    def top(self) -> int:
        """Return the number of top contexts."""
        return self.values.shape[1] - INTERVALS * self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Return the ledger's size in bytes."""
        return sum(array.nbytes for array in vars(self).values())

    @staticmethod
    def empty(width: int, sizes: Sizes) -> "Ledger":
        """Return the ledger of no rows."""
        return Ledger(
            fired=np.zeros(width, np.int64),
            sums=np.zeros((width, loops.SUM_DIGITS), np.int64),
            squares=np.zeros((width, loops.SQUARE_DIGITS), np.int64),
            exponents=np.full(width, loops.NEVER, np.int32),
            bins=np.zeros((width, BINS), np.int64),
            values=np.zeros((width, sizes.slots), np.float32),
            shards=np.full((width, sizes.slots), -1, np.int32),
            places=np.full((width, sizes.slots), -1, np.int32),
            keys=np.full((width, INTERVALS, sizes.samples), loops.EMPTY, np.uint64),
            token_keys=np.full((width, sizes.tokens), loops.EMPTY, np.uint64),
            token_ids=np.full((width, sizes.tokens), -1, np.int32),
            offsets=np.zeros(width * sizes.slots + 1, np.int64),
            at=np.zeros(0, np.int16),
            activations=np.zeros(0, np.float32),
        )

    @staticmethod
    def of(firings: Firings, shard: int, tokens: np.ndarray, context: int, sizes: Sizes, seed: int, first: int = 0) -> "Ledger":
        """Return the ledger of one shard's firings.

        ``tokens`` are the ids of the shard's packed text, by place; ``first`` is the number of latent 0 in the SAE.
        """
        width = len(firings.starts) - 1
        ledger = Ledger.empty(width, sizes)
        entries, token_entries = np.full((width, sizes.slots), -1, np.int64), np.full((width, sizes.tokens), -1, np.int64)
        keys = loops.row_keys(seed, shard, np.arange(len(tokens)))
        starts, places, values = firings.starts, firings.places, firings.values
        loops.count(
            starts, places, values, values.view(np.uint32), keys, first, context, sizes.top, ledger.sums, ledger.squares,
            ledger.exponents, ledger.bins, entries, ledger.keys, ledger.token_keys, token_entries,
        )  # fmt: skip
        held, sampled = entries >= 0, token_entries >= 0
        ledger.values[held], ledger.places[held], ledger.shards[held] = values[entries[held]], places[entries[held]], shard
        ledger.token_ids[sampled] = tokens[places[token_entries[sampled]]]
        counts = np.zeros((width, sizes.slots), np.int64)
        loops.window_counts(starts, places, entries, context, sizes.window, counts)
        offsets = _offsets(counts)
        at, activations = np.empty(offsets[-1], np.int16), np.empty(offsets[-1], np.float32)
        loops.fill_windows(starts, places, values, entries, context, sizes.window, offsets, at, activations)
        return replace(ledger, fired=np.diff(starts), offsets=offsets, at=at, activations=activations)

    def merged(self, other: "Ledger") -> "Ledger":
        """Return the ledger of both ledgers' rows; no row may be in both."""
        source = np.full(self.values.shape, -1, np.int64)
        keys = np.full_like(self.keys, loops.EMPTY)
        mine = self.exponents, self.values, self.shards, self.places, self.keys
        theirs = other.exponents, other.values, other.shards, other.places, other.keys
        loops.merge_slots(self.top, *mine, *theirs, source, keys)
        exponents, bins, token_keys, token_ids, sums, squares = (
            x.copy() for x in (self.exponents, self.bins, self.token_keys, self.token_ids, self.sums, self.squares)
        )
        loops.merge_counts(
            exponents, bins, token_keys, token_ids, sums, squares,
            other.exponents, other.bins, other.token_keys, other.token_ids, other.sums, other.squares,
        )  # fmt: skip
        offsets = _offsets(_chosen(source, self._window_sizes, other._window_sizes, 0))
        at, activations = np.empty(offsets[-1], np.int16), np.empty(offsets[-1], np.float32)
        loops.gather_windows(
            source, self.offsets, self.at, self.activations, other.offsets, other.at, other.activations, offsets, at, activations
        )
        return Ledger(
            self.fired + other.fired, sums, squares, exponents, bins,
            _chosen(source, self.values, other.values, 0), _chosen(source, self.shards, other.shards, -1),
            _chosen(source, self.places, other.places, -1), keys, token_keys, token_ids, offsets, at, activations,
        )  # fmt: skip

    def slice(self, start: int, stop: int) -> "Ledger":
        """Return the ledger of latents ``start`` to ``stop``."""
        slots = self.values.shape[1]
        low, high = self.offsets[start * slots], self.offsets[stop * slots]
        of_latents = {f.name: getattr(self, f.name)[start:stop] for f in fields(self) if f.name not in ("offsets", "at", "activations")}
        offsets = self.offsets[start * slots : stop * slots + 1] - low
        return Ledger(**of_latents, offsets=offsets, at=self.at[low:high], activations=self.activations[low:high])

    @staticmethod
    def joined(ledgers: "list[Ledger]") -> "Ledger":
        """Return the ledger of all latents from ledgers of consecutive ones."""
        arrays = {f.name: np.concatenate([getattr(ledger, f.name) for ledger in ledgers]) for f in fields(Ledger) if f.name != "offsets"}
        return Ledger(**arrays, offsets=_offsets(np.concatenate([ledger._window_sizes for ledger in ledgers])))

    @property
    def _window_sizes(self) -> np.ndarray:
        return np.diff(self.offsets).reshape(self.values.shape)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), counts.ravel().cumsum()])


def _chosen(source: np.ndarray, mine: np.ndarray, theirs: np.ndarray, empty: int) -> np.ndarray:
    """Return the chosen slots' values [F, S]: see `loops.merge_slots`."""
    both = np.take_along_axis(np.concatenate([mine, theirs], axis=1), source.clip(min=0), axis=1)
    return np.where(source >= 0, both, np.array(empty, mine.dtype))
