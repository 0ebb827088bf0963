"""Pack tokens into sequences, and sequences into buckets of rows.

Packing is done before the model runs. Documents are joined, each opened by BOS, and cut into sequences of the context
length. Every sequence opens with BOS too. A bucket takes whole sequences until they hold enough rows. A row is a token
other than BOS, EOS and PAD. So the content of a bucket depends on nothing but the corpus and the plan.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """Hold S packed sequences of T tokens. Every array is [S, T]."""

    tokens: np.ndarray  # int32
    document: np.ndarray  # int64, index of the document in the corpus
    position: np.ndarray  # int32, index of the token in its document; -1 for a BOS that packing added

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: slice) -> "Sequences":
        return Sequences(self.tokens[which], self.document[which], self.position[which])

    @staticmethod
    def join(parts: "list[Sequences]") -> "Sequences":
        """Concatenate sequences of one length."""
        return Sequences(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("tokens", "document", "position")))


def pack_sequences(tokenized: Iterable[np.ndarray], context_length: int, bos: int) -> Iterator[Sequences]:
    """Pack tokenized documents (one int array each) into sequences, yielded one by one.

    Tokens at the end that do not fill a sequence are dropped.
    """
    pending = np.empty((3, 0), dtype=np.int64)  # rows: token, document, position
    for number, tokens in enumerate(tokenized):
        opened = np.empty((3, len(tokens) + 1), dtype=np.int64)
        opened[0, 0], opened[0, 1:] = bos, tokens
        opened[1] = number
        opened[2] = np.arange(-1, len(tokens))
        pending = np.concatenate([pending, opened], axis=1)
        start = 0
        while (cut := _cut(pending, start, context_length, bos)) is not None:
            block, start = cut
            yield Sequences(block[0:1].astype(np.int32), block[1:2].copy(), block[2:3].astype(np.int32))
        pending = pending[:, start:]


def _cut(pending: np.ndarray, start: int, context_length: int, bos: int) -> tuple[np.ndarray, int] | None:
    """Return the sequence at ``start`` and the next start; None if tokens are too few."""
    opens = start < pending.shape[1] and pending[2, start] == -1  # the document's own BOS opens the sequence
    end = start + context_length - (0 if opens else 1)
    if end > pending.shape[1]:
        return None
    block = pending[:, start:end]
    if not opens:
        block = np.concatenate([[[bos], [block[1, 0]], [-1]], block], axis=1)
    return block, end


def row_mask(tokens: np.ndarray, special: Iterable[int]) -> np.ndarray:
    """Return a mask of the tokens' shape: True for rows, False for special tokens."""
    return ~np.isin(tokens, list(special))


def group_into_buckets(packed: Iterable[Sequences], rows: int, special: Iterable[int]) -> Iterator[Sequences]:
    """Group sequences into buckets of at least ``rows`` rows; drop an incomplete last bucket."""
    special = list(special)
    bucket: list[Sequences] = []
    count = 0
    for sequence in packed:
        bucket.append(sequence)
        count += int(row_mask(sequence.tokens, special).sum())
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
