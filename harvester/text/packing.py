"""Tokens to sequences, sequences to buckets of rows: the plan of a harvest, made before the model runs.

Documents are joined, each opened by BOS, and cut into sequences of the context length that each open with BOS too.
A bucket takes whole sequences until they hold enough rows, a row being a token that is not BOS, EOS or PAD. What a
harvester does with bucket 17 thus depends on nothing but the corpus and the plan.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """S packed sequences of T tokens. Legend: [S, T]."""

    tokens: np.ndarray  # int32
    document: np.ndarray  # int64, index of the document in the corpus
    position: np.ndarray  # int32, index of the token in its document; -1 for a BOS that we put there

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: slice) -> "Sequences":
        return Sequences(self.tokens[which], self.document[which], self.position[which])

    @staticmethod
    def join(parts: "list[Sequences]") -> "Sequences":
        return Sequences(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("tokens", "document", "position")))


def sequences(tokenized: Iterable[np.ndarray], context_length: int, bos: int) -> Iterator[Sequences]:
    """Pack documents (one int array each) into single sequences; the tail that fills none is left."""
    pending = np.empty((3, 0), dtype=np.int64)  # rows: token, document, position
    for number, tokens in enumerate(tokenized):
        opened = np.empty((3, len(tokens) + 1), dtype=np.int64)
        opened[0, 0], opened[0, 1:] = bos, tokens
        opened[1] = number
        opened[2] = np.arange(-1, len(tokens))
        pending = np.concatenate([pending, opened], axis=1)
        start = 0
        while (taken := _cut(pending, start, context_length, bos)) is not None:
            block, start = taken
            yield Sequences(block[0:1].astype(np.int32), block[1:2].copy(), block[2:3].astype(np.int32))
        pending = pending[:, start:]


def _cut(pending: np.ndarray, start: int, context_length: int, bos: int) -> tuple[np.ndarray, int] | None:
    """The sequence that begins at ``start`` and where the next begins; None if too little is left."""
    opens = start < pending.shape[1] and pending[2, start] == -1  # a document's own BOS opens the sequence
    end = start + context_length - (0 if opens else 1)
    if end > pending.shape[1]:
        return None
    block = pending[:, start:end]
    if not opens:
        block = np.concatenate([[[bos], [block[1, 0]], [-1]], block], axis=1)
    return block, end


def rows_of(tokens: np.ndarray, special: Iterable[int]) -> np.ndarray:
    """Which tokens are rows: a mask of the same shape, False at BOS, EOS and PAD."""
    return ~np.isin(tokens, list(special))


def buckets(packed: Iterable[Sequences], rows: int, special: Iterable[int]) -> Iterator[Sequences]:
    """Group sequences into buckets of at least ``rows`` rows each; an incomplete last bucket is left."""
    special = list(special)
    held: list[Sequences] = []
    count = 0
    for sequence in packed:
        held.append(sequence)
        count += int(rows_of(sequence.tokens, special).sum())
        if count >= rows:
            yield Sequences.join(held)
            held, count = [], 0


def permutation(seed: int, bucket: int, rows: int) -> np.ndarray:
    """The place of each row of a bucket in its shard.

    Sorted raw words of a counter-based generator: numpy promises the words for ever, its `permutation` only for a version.
    """
    words = np.random.Philox(key=[seed, bucket]).random_raw(rows)
    return np.argsort(words, kind="stable")
