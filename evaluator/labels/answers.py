"""Read answers: a label, or words with their log-probabilities where the endpoint gives some."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scopemill.evaluator.labels.contexts import CLOSE, OPEN
from scopemill.evaluator.labels.prompts import MOST_LABEL, Question

_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)  # of models that reason before they answer
_EDGES = " \t\r\n\"'`*.:,;()[]"


@dataclass(frozen=True)
class Answer:
    """Hold what an endpoint answered."""

    text: str
    tokens: tuple[tuple[str, dict[str, float]], ...] = ()  # each token, and the log-probability of it and its rivals

    def only(self, question: Question) -> "Answer":
        """Return the answer with the tokens that are words of the question alone."""
        return Answer(self.text, tuple(one for one in self.tokens if _word(one[0]) in question.words))


@dataclass(frozen=True)
class Reading:
    """Hold the words of an answer, and log-probabilities of the words in each one's place."""

    words: tuple[str, ...]
    logprobs: tuple[dict[str, float], ...] | None  # by word; -inf is never there: an absent word has at most the least one shown


def answer_of(message: dict[str, Any], logprobs: Any) -> Answer:
    """Return the answer in a chat completion; ValueError if there is no text."""
    text = message.get("content")
    if not isinstance(text, str):
        raise ValueError("a message without text")
    return Answer(text, tuple(_tokens(logprobs)))


def _tokens(logprobs: Any) -> list[tuple[str, dict[str, float]]]:
    try:
        return [
            (one["token"], {one["token"]: float(one["logprob"])} | {r["token"]: float(r["logprob"]) for r in one["top_logprobs"] or ()})
            for one in logprobs["content"]
        ]
    except (TypeError, KeyError, ValueError):  # absent, or of a form of the endpoint's own
        return []


def label_in(answer: Answer) -> str | None:
    """Return the label in an answer; None if there is none."""
    unmarked = _THOUGHT.sub("", answer.text).replace(OPEN, "").replace(CLOSE, "")  # small models copy the marks
    lines = [line.strip().strip("\"'`*").strip() for line in unmarked.splitlines()]
    text = next((line for line in lines if any(letter.isalnum() for letter in line)), None)
    return " ".join(text.split())[:MOST_LABEL] if text else None


def read(answer: Answer, question: Question) -> Reading | None:
    """Return the words of an answer; None if it is no answer to the question."""
    words = re.findall("|".join(rf"\b{word}\b" for word in question.words), _THOUGHT.sub("", answer.text).lower())
    if len(words) != question.count:
        return None
    places = [rivals for token, rivals in answer.tokens if _word(token) in question.words]
    if len(places) < question.count or len(places[0]) < 2:
        return Reading(tuple(words), None)
    return Reading(tuple(words), tuple(_by_word(rivals, question.words) for rivals in places[-question.count :]))


def _word(token: str) -> str:
    return token.strip(_EDGES).lower()


def _by_word(rivals: dict[str, float], words: Sequence[str]) -> dict[str, float]:
    """Return the log-probability of each word, all its spellings together."""
    least = min(rivals.values())
    found = {word: [value for token, value in rivals.items() if _word(token) == word] for word in words}
    return {word: math.log(math.fsum(map(math.exp, values))) if values else least for word, values in found.items()}
