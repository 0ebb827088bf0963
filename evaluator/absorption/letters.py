"""Measure absorption of the first letters of words.

SAEBench's evaluation. Its prompt is ``{word} has the first letter:``, and what is looked at is the word's own token, at position -6. A
causal model has not read further there, so the word alone is run, after BOS.
Legend of shapes: n words, d width of the hook, F latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
import torch
from scipy import sparse

from scopemill.evaluator.absorption.main_latents import by_probe, f1
from scopemill.evaluator.absorption.measure import absorption
from scopemill.evaluator.probes.logistic import fitted, standardized
from scopemill.proto.errors import InputError
from scopemill.proto.vocabulary import Vocabulary

FEWEST_LETTERS, LEAST_F1 = 20, 0.6  # letters that a probe has to find, and how well
FEWEST_WORDS = 20  # of a letter
TEST_SHARE, SEED = 0.2, 0
PENALTY = 1.0  # scikit-learn's C of a probe on all columns: a strong penalty misses rare letters


@dataclass(frozen=True)
class Words:
    """Hold words of one token each, with their first letters."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    is_test: np.ndarray  # bool [n]

    @property
    def letters(self) -> np.ndarray:
        """Return each word's first letter, [n]."""
        return np.array([text[0].lower() for text in self.texts])


@dataclass(frozen=True)
class Probes:
    """Hold a direction for each letter that can be read off the activation."""

    directions: dict[str, np.ndarray]  # [d], raw
    f1: dict[str, float]  # of every letter with enough words, on held-out words
    predicted: dict[str, np.ndarray]  # bool [n]


@dataclass(frozen=True)
class Letter:
    """Record the absorption of one letter."""

    letter: str
    words: int  # held out, of the letter, and seen by the probe of the activation
    probe_f1: float
    main: tuple[int, ...]  # latents; several: the letter is split
    main_f1: float
    full: float  # share of the words that are fully absorbed
    fraction: float
    absorbing: dict[int, tuple[str, ...]]  # latents that absorb fully, with the words


def words_of(vocabulary: Vocabulary, most: int) -> Words:
    """Return the tokens that are a space and two or more ASCII letters.

    Of more than ``most`` a random choice is taken. The same words are held out for every SAE.
    """
    found = []
    for token, data in enumerate(vocabulary.tokens):
        text = data.decode("ascii", errors="replace")
        if token not in vocabulary.special and text[:1] == " " and len(text) > 2 and text[1:].isascii() and text[1:].isalpha():
            found.append((token, text[1:]))
    random = np.random.default_rng(SEED)
    chosen = [found[i] for i in sorted(random.permutation(len(found))[:most])]
    is_test = random.random(len(chosen)) < TEST_SHARE
    return Words(tuple(token for token, _ in chosen), tuple(text for _, text in chosen), is_test)


def fit_probes(words: Words, rows: np.ndarray) -> Probes:
    """Fit a logistic probe for each letter on activations [n, d].

    Raises InputError where fewer than 20 letters have an F1 above 0.6 on held-out words: such a model cannot be measured by its spelling.
    """
    train, _ = standardized(rows[~words.is_test].astype(np.float64), rows[:1].astype(np.float64))
    _, every = standardized(rows[~words.is_test].astype(np.float64), rows.astype(np.float64))
    deviation = rows[~words.is_test].astype(np.float64).std(axis=0)
    directions, scores, predicted = {}, {}, {}
    for letter in ascii_lowercase:
        targets = words.letters == letter
        if targets[~words.is_test].sum() < FEWEST_WORDS or not targets[words.is_test].any():
            continue
        model = fitted(train, targets[~words.is_test], PENALTY)
        hits = model.decision_function(every) > 0
        scores[letter] = f1(hits[words.is_test], targets[words.is_test])
        if scores[letter] > LEAST_F1:
            directions[letter] = np.divide(model.coef_[0], deviation, out=np.zeros_like(deviation), where=deviation > 0)
            predicted[letter] = hits
    if len(directions) < FEWEST_LETTERS:
        raise InputError(
            f"absorption cannot be measured by first letters here: of the model's {len(words.texts):,} words, probes of this hook find the "
            f"first letter with an F1 above {LEAST_F1} for {len(directions)} letters, and {FEWEST_LETTERS} are needed; take a model that "
            "spells, or a narrower SAE (--narrower)"
        )
    return Probes(directions, scores, predicted)


def measure_letters(words: Words, rows: np.ndarray, probes: Probes, latents: sparse.csr_array, decoder: np.ndarray) -> list[Letter]:
    """Measure each letter's absorption by an SAE.

    ``latents`` are its activations [n, F] on the words, ``decoder`` its rows [F, d]. Only held-out words that the probe of the activation
    recognizes count.
    """
    measured = []
    for letter, direction in probes.directions.items():
        targets = words.letters == letter
        main, score = by_probe(latents, targets, words.is_test)
        counted = np.flatnonzero(targets & words.is_test & probes.predicted[letter])
        unit = direction / np.linalg.norm(direction)
        found = absorption(latents[counted], decoder, direction, rows[counted].astype(np.float64) @ unit, main)
        absorbing: dict[int, list[str]] = {}
        for word, latent in zip(counted[found.full], found.latent[found.full], strict=True):
            absorbing.setdefault(int(latent), []).append(words.texts[word])
        measured.append(
            Letter(
                letter,
                len(counted),
                probes.f1[letter],
                tuple(main),
                score,
                _mean(found.full),
                _mean(found.fraction),
                {latent: tuple(texts) for latent, texts in sorted(absorbing.items())},
            )  # fmt: skip
        )
    return measured


def prompts_of(words: Words, bos: int) -> Sequence[list[int]]:
    """Return the tokens to run for each word."""
    return [[bos, token] for token in words.tokens]


def as_array(rows: torch.Tensor) -> np.ndarray:
    """Return rows as float64."""
    array: np.ndarray = rows.double().cpu().numpy()
    return array


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
