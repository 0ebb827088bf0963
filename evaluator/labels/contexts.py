"""Choose the contexts that explain a latent, and those that its label is scored on.

A document is in one of two halves by a hash of its number: labels are written from the one and scored on the other. A window is cut to
the document of its peak, so no text of the other half comes along.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from scopemill.evaluator.evidence.reader import Evidence
from scopemill.proto.evidence import INTERVALS, TOP, Example
from scopemill.proto.vocabulary import Vocabulary

EXPLAIN, SCORE = 0, 1  # the halves
STRONG = 0.3  # of a context's largest activation, from which on a token is marked
OTHERS = 64  # latents whose contexts are random negatives
NEAREST = 5  # latents whose contexts are hard negatives
KEPT_LATENTS = 256  # whose contexts stay in memory
OPEN, CLOSE = "<<", ">>"
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """Hold a context as pieces of text, with the latent's activation at each."""

    pieces: tuple[str, ...]
    activations: tuple[float, ...]
    interval: int
    half: int
    sequence: tuple[int, int]  # shard, and sequence in it: contexts of one sequence may overlap

    @property
    def text(self) -> str:
        """Return the context as plain text."""
        return "".join(self.pieces)

    @property
    def strong(self) -> frozenset[int]:
        """Return the tokens on which the latent fires at some strength."""
        least = STRONG * max(self.activations)
        return frozenset(i for i, value in enumerate(self.activations) if value > 0 and value >= least)

    def marked(self, tokens: Iterable[int] | None = None) -> str:
        """Return the text with tokens in marks, by default those on which the latent fires."""
        chosen = self.strong if tokens is None else set(tokens)
        text, inside = "", False
        for i, piece in enumerate(self.pieces):
            if (i in chosen) != inside:
                text += CLOSE if inside else OPEN
                inside = not inside
            text += piece
        return text + CLOSE * inside

    def elsewhere(self, seed: str) -> frozenset[int] | None:
        """Return as many silent tokens; None if there are too few."""
        silent = [i for i, value in enumerate(self.activations) if not value and self.pieces[i].strip()]
        wanted = len(self.strong)
        return frozenset(shuffled(silent, seed)[:wanted]) if len(silent) >= wanted else None


@dataclass(frozen=True)
class LatentContexts:
    """Hold the contexts that a latent is explained from, and those to score on."""

    latent: int
    explain: tuple[Context, ...]
    positives: tuple[Context, ...]
    others: tuple[Context, ...]  # of random other latents
    nearest: tuple[Context, ...]  # of the nearest latents


class Contexts:
    """Choose contexts from an SAE's evidence; the same evidence gives the same ones."""

    def __init__(self, evidence: Evidence, shown: int, scored: int):
        self._evidence, self._shown, self._scored = evidence, shown, scored
        self._words = evidence.vocabulary
        self._contexts = lru_cache(KEPT_LATENTS)(self._read)
        table = evidence.latents(["latent", "fired", "nearest_latents"])
        self._nearest: list[list[int]] = table.column("nearest_latents").to_pylist()
        alive = np.flatnonzero(table.column("fired").to_numpy() > 0).tolist()
        self._pool = {latent: self._half(latent, SCORE) for latent in shuffled(alive, "others")[:OTHERS]}

    def neighbours(self, latent: int) -> list[int]:
        """Return the nearest latents by decoder cosine."""
        return self._nearest[latent][:NEAREST]

    def of(self, latent: int) -> LatentContexts:
        """Return the contexts of one latent."""
        explain, score, near = self._half(latent, EXPLAIN), self._half(latent, SCORE), self.neighbours(latent)
        fires = {context.sequence for context in self._contexts(latent)}  # no negatives are taken from there
        others = [context for other, found in self._pool.items() if other not in (latent, *near) for context in found]
        hard = _in_turn([self._half(other, SCORE) for other in near])
        top = [context for context in explain if context.interval == TOP][: self._shown // 2]
        rest = [context for context in spread(explain) if context not in top]
        return LatentContexts(
            latent,
            tuple((top + rest)[: self._shown]),
            tuple(spread(score)[: self._scored]),
            tuple(_apart(shuffled(others, f"others {latent}"), fires)[: self._scored]),
            tuple(_apart(hard, fires)[: self._scored]),
        )

    def _half(self, latent: int, half: int) -> list[Context]:
        """Return the contexts of a latent in one half of the documents, one for each sequence."""
        return _apart([context for context in self._contexts(latent) if context.half == half], set())

    def _read(self, latent: int) -> list[Context]:
        return [context_of(example, self._words) for example in self._evidence.examples(latent)]


def half_of(document: int) -> int:
    """Return the half that a document is in, by a hash of its number."""
    return hashlib.blake2b(str(document).encode(), digest_size=1).digest()[0] & 1


def context_of(example: Example, words: Vocabulary) -> Context:
    """Return an example as text, cut to the document of its peak."""
    start, stop = max(0, example.peak - example.position), len(example.tokens)
    for at in range(example.peak - 1, start - 1, -1):
        if example.tokens[at] in words.special:
            start = at + 1
            break
    for at in range(example.peak + 1, stop):
        if example.tokens[at] in words.special:
            stop = at
            break
    pieces = words.pieces(example.tokens[start:stop])
    return Context(
        tuple(pieces),
        tuple(example.activations[start:stop]),
        example.interval,
        half_of(example.document),
        (example.shard, example.sequence),
    )


def spread(contexts: Sequence[Context]) -> list[Context]:
    """Return contexts in turn from the top and from each interval of activation."""
    strata: dict[int, list[Context]] = {interval: [] for interval in (TOP, *range(INTERVALS - 1, -1, -1))}
    for context in contexts:
        strata[context.interval].append(context)
    return _in_turn(list(strata.values()))


def shuffled(values: Sequence[T], seed: str) -> list[T]:
    """Return values in an order that the seed alone decides."""
    number = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little")
    return [values[i] for i in np.random.default_rng(number).permutation(len(values))]


def _in_turn(lists: Sequence[Sequence[Context]]) -> list[Context]:
    return [context for turn in zip_longest(*lists) for context in turn if context is not None]


def _apart(contexts: Iterable[Context], taken: set[tuple[int, int]]) -> list[Context]:
    """Return contexts of different sequences, none of them taken."""

    def kept() -> Iterator[Context]:
        seen = set(taken)
        for context in contexts:
            if context.sequence not in seen:
                seen.add(context.sequence)
                yield context

    return list(kept())
