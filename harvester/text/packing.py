"""Pack tokens into sequences, and sequences into buckets of rows.

Packing is done before the model runs. Documents are joined, each opened by BOS, and cut into sequences of the context
length. Every sequence opens with BOS too. A bucket takes whole sequences until they hold enough rows. A row is a token
other than BOS, EOS and PAD, unless the corpus or the plan leaves it out. So the content of a bucket depends on nothing
but the corpus and the plan.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Document:
    """Hold a tokenized document of n tokens, without the BOS that packing puts before it."""

    tokens: np.ndarray  # int64 [n]
    wanted: np.ndarray | None = None  # bool [n]; None: every token may be a row


@dataclass(frozen=True)
class Sequences:
    """Hold S packed sequences of T tokens. Every array is [S, T]."""

    tokens: np.ndarray  # int32
    document: np.ndarray  # int64, index of the document in the corpus
    position: np.ndarray  # int32, index of the token in its document; -1 for a BOS that packing added
    wanted: np.ndarray  # bool, False for tokens that are no rows though they are not special

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: slice) -> "Sequences":
        return Sequences(self.tokens[which], self.document[which], self.position[which], self.wanted[which])

    @staticmethod
    def join(parts: "list[Sequences]") -> "Sequences":
        """Concatenate sequences of one length."""
        return Sequences(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("tokens", "document", "position", "wanted")))

    def row_mask(self, special: Iterable[int]) -> np.ndarray:
        """Return a mask [S, T] of the rows: False for special tokens and unwanted ones."""
        return ~np.isin(self.tokens, list(special)) & self.wanted


def pack_sequences(tokenized: Iterable[Document], context_length: int, bos: int, drop_first: int = 0) -> Iterator[Sequences]:
    """Pack tokenized documents into sequences, yielded one by one.

    Tokens at the end that do not fill a sequence are dropped. The first ``drop_first`` tokens of a sequence are no rows.
    """
    pending = np.empty((4, 0), dtype=np.int64)  # rows: token, document, position, wanted
    kept = np.arange(context_length) >= drop_first
    for number, document in enumerate(tokenized):
        opened = np.empty((4, len(document.tokens) + 1), dtype=np.int64)
        opened[0, 0], opened[0, 1:] = bos, document.tokens
        opened[1] = number
        opened[2] = np.arange(-1, len(document.tokens))
        opened[3, 0], opened[3, 1:] = 1, 1 if document.wanted is None else document.wanted
        pending = np.concatenate([pending, opened], axis=1)
        start = 0
        while (cut := _cut(pending, start, context_length, bos)) is not None:
            block, start = cut
            wanted = block[3:4].astype(bool) & kept
            yield Sequences(block[0:1].astype(np.int32), block[1:2].copy(), block[2:3].astype(np.int32), wanted)
        pending = pending[:, start:]


def _cut(pending: np.ndarray, start: int, context_length: int, bos: int) -> tuple[np.ndarray, int] | None:
    """Return the sequence at ``start`` and the next start; None if tokens are too few."""
    opens = start < pending.shape[1] and pending[2, start] == -1  # the document's own BOS opens the sequence
    end = start + context_length - (0 if opens else 1)
    if end > pending.shape[1]:
        return None
    block = pending[:, start:end]
    if not opens:
        block = np.concatenate([[[bos], [block[1, 0]], [-1], [1]], block], axis=1)
    return block, end


def group_into_buckets(packed: Iterable[Sequences], rows: int, special: Iterable[int]) -> Iterator[Sequences]:
    """Group sequences into buckets of at least ``rows`` rows; drop an incomplete last bucket."""
    special = list(special)
    bucket: list[Sequences] = []
    count = 0
    for sequence in packed:
        bucket.append(sequence)
        count += int(sequence.row_mask(special).sum())
        if count >= rows:
            yield Sequences.join(bucket)
            bucket, count = [], 0


def permutation(seed: int, bucket: int, rows: int) -> np.ndarray:
    """Return the place (rows,) of each row of a bucket in its shard.

    The places are the order of a counter-based generator's raw words. NumPy promises these words for ever, but its own
    ``permutation`` only within a version.
    """
    words = np.random.Philox(key=[seed, bucket]).random_raw(rows)
    return np.argsort(words, kind="stable")
