"""Plan the questions that score a latent's label, and turn their answers into figures.

Every figure is an area under the ROC curve: 1 tells all texts apart, 0.5 none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scopemill.evaluator.labels import prompts
from scopemill.evaluator.labels.answers import Answer, Reading, read
from scopemill.evaluator.labels.contexts import Context, LatentContexts, shuffled
from scopemill.evaluator.labels.prompts import Question

Method = Literal["detection", "fuzzing", "intruder"]
METHODS: tuple[Method, ...] = ("detection", "fuzzing", "intruder")
OF_LABEL: tuple[Method, ...] = ("detection", "fuzzing")  # the others judge the latent, whatever its label
TEXTS = 5  # of one request, unless fewer are asked for
Judged = tuple[str, bool | None]  # a text, and whether it is a positive; None: a hard negative
LEAST = 2  # texts of each kind, below which there is no figure


@dataclass(frozen=True)
class Asked:
    """Hold a question, its figure, and which of its texts are to be found."""

    figure: str
    question: Question
    found: tuple[bool | None, ...]  # True: positive; False: negative; None: hard negative


def questions(contexts: LatentContexts, label: str, other: str | None, methods: Sequence[Method], at_once: int = TEXTS) -> list[Asked]:
    """Return all questions about a latent's label.

    ``other`` is the label of another latent, as a control. ``at_once``: texts that one request has to judge; an intruder is always one of
    `TEXTS`.
    """
    asked: list[Asked] = []
    for method in methods:
        if method == "intruder":
            asked += _intruders(contexts)
            continue
        ask = prompts.detection if method == "detection" else prompts.fuzzing
        easy = _texts(contexts, method)
        for figure, own_label, texts in ((method, label, easy + _hard(contexts, method)), (f"{method}_shuffled", other, easy)):
            if own_label is not None:
                for part in _parts(texts, at_once, f"{figure} {contexts.latent}"):
                    asked.append(Asked(figure, ask(own_label, [text for text, _ in part]), tuple(kind for _, kind in part)))
    return asked


def _texts(contexts: LatentContexts, method: Method) -> list[Judged]:
    """Return the positive and the negative texts of a method."""
    if method == "detection":
        return [*((one.text, True) for one in contexts.positives), *((one.text, False) for one in contexts.others)]
    texts: list[Judged] = []
    for i, one in enumerate(contexts.positives):
        wrong = one.elsewhere(f"{contexts.latent} {i}")
        if wrong is not None:
            texts += [(one.marked(), True), (one.marked(wrong), False)]
    return texts


def _hard(contexts: LatentContexts, method: Method) -> list[Judged]:
    return [(one.text if method == "detection" else one.marked(), None) for one in contexts.nearest]


def _parts(texts: list[Judged], at_once: int, seed: str) -> Iterator[list[Judged]]:
    mixed = shuffled(texts, seed)
    for start in range(0, len(mixed), at_once):
        yield mixed[start : start + at_once]


def _intruders(contexts: LatentContexts) -> Iterator[Asked]:
    """Yield questions with one text of another latent each; each other context serves once."""
    own = contexts.positives
    if len(own) < TEXTS - 1:
        return
    for figure, others in (("intruder", contexts.others), ("intruder_nearest", contexts.nearest)):
        for i, other in enumerate(others[: max(1, len(others) // 2)]):
            chosen: list[tuple[Context, bool | None]] = [
                (one, False) for one in shuffled(own, f"{figure} {contexts.latent} {i}")[: TEXTS - 1]
            ]
            mixed = shuffled([*chosen, (other, True)], f"places {figure} {contexts.latent} {i}")
            yield Asked(figure, prompts.intruder([one.marked() for one, _ in mixed]), tuple(found for _, found in mixed))


@dataclass(frozen=True)
class Figures:
    """Hold the figures of a label by column; None where too few texts were judged."""

    values: dict[str, float | None]
    basis: str | None  # "logprobs" or "answers"
    unread: int  # answers that are none

    @property
    def score(self) -> float | None:
        """Return the mean of the figures that judge the label."""
        own = [value for method in OF_LABEL if (value := self.values.get(method)) is not None]
        return sum(own) / len(own) if own else None


def figures(asked: Sequence[Asked], answers: Sequence[Answer | None]) -> Figures:
    """Return the figures of answers; none where not all was answered yet.

    Log-probabilities are used if every answer has them.
    """
    given = [(one, answer) for one, answer in zip(asked, answers, strict=True) if answer is not None]
    if len(given) < len(asked):
        return Figures({}, None, 0)
    readings = [(one, read(answer, one.question)) for one, answer in given]
    known = [(one, reading) for one, reading in readings if reading is not None]
    by_logprobs = bool(known) and all(reading.logprobs for _, reading in known)
    positive: dict[str, list[float]] = {}
    negative: dict[str, list[float]] = {}
    for one, reading in known:
        for found, value in zip(one.found, _values(one, reading, by_logprobs), strict=True):
            if found is None:
                negative.setdefault(f"{one.figure}_nearest", []).append(value)
            else:
                (positive if found else negative).setdefault(one.figure, []).append(value)
    values: dict[str, float | None] = {}
    for figure, wrong in negative.items():
        right = positive.get(figure, positive.get(figure.removesuffix("_nearest"), []))
        values[figure] = auc(right, wrong) if min(len(right), len(wrong)) >= LEAST else None
    return Figures(values, ("logprobs" if by_logprobs else "answers") if known else None, len(readings) - len(known))


def _values(asked: Asked, reading: Reading, by_logprobs: bool) -> list[float]:
    """Return how sure the answer is of each text."""
    if asked.question.words == ("yes", "no"):
        if by_logprobs and reading.logprobs:
            return [rivals["yes"] - rivals["no"] for rivals in reading.logprobs]
        return [float(word == "yes") for word in reading.words]
    if by_logprobs and reading.logprobs:
        return [reading.logprobs[0][word] for word in asked.question.words]
    return [float(word == reading.words[0]) for word in asked.question.words]


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the area under the ROC curve.

    It is the share of pairs in which the positive one has the larger value; equal ones count half.
    """
    right, wrong = np.asarray(positive)[:, None], np.asarray(negative)[None]
    return float(((right > wrong) + 0.5 * (right == wrong)).mean())
