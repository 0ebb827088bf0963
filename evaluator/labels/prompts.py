"""Write the requests to explain a latent, and to judge texts by a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scopemill.evaluator.labels.contexts import CLOSE, OPEN, Context

VERSION = 1  # of the wording: another one is another label file
LABEL_TOKENS, WORD_TOKENS = 160, 8  # the most to generate: of a label, and for each verdict
TOP_LOGPROBS = 20
MOST_LABEL = 512  # characters of a label

_RESEARCHER = "You study the neurons of a language model. Each neuron is active on some tokens of texts."
_EXPLAIN = (
    f"In the texts below, the tokens on which one neuron is active stand between {OPEN} and {CLOSE}. Say in one short phrase what the "
    "marked tokens, or the texts around them, have in common. Be specific. Reply with the phrase alone, without quotes."
)
_DETECT = (
    "A neuron is active on texts that hold this: {label}\n\nFor each text below say whether the neuron is active on it. Reply with one "
    "word a text, yes or no, in their order, separated by spaces, and nothing else. {count}"
)
_FUZZ = (
    "A neuron is active on tokens like this: {label}\n\nIn each text below some tokens stand between " + OPEN + " and " + CLOSE + ". For "
    "each text say whether the marked tokens are those on which the neuron is active. Reply with one word a text, yes or no, in their "
    "order, separated by spaces, and nothing else. {count}"
)
_INTRUDE = (
    "In all but one of the texts below, the tokens between " + OPEN + " and " + CLOSE + " are those on which one and the same neuron is "
    "active. In one text they belong to another neuron. Which text is that? Reply with its number alone, from 1 to {count}."
)


@dataclass(frozen=True)
class Question:
    """Hold a request: its messages, and of which words an answer consists."""

    messages: tuple[tuple[str, str], ...]  # role and content
    words: tuple[str, ...] = ()  # empty: the answer is free text
    count: int = 1  # of words in an answer

    def body(self, model: str) -> dict[str, Any]:
        """Return the request's body, as chat completions have it."""
        messages = [{"role": role, "content": content} for role, content in self.messages]
        fields: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0}
        if not self.words:
            return fields | {"max_tokens": LABEL_TOKENS}
        return fields | {"max_tokens": WORD_TOKENS * (self.count + 1), "logprobs": True, "top_logprobs": TOP_LOGPROBS}


def explanation(contexts: Sequence[Context]) -> Question:
    """Ask what the marked tokens of contexts have in common."""
    return _asked(f"{_EXPLAIN}\n\n{_numbered([context.marked() for context in contexts])}")


def detection(label: str, texts: Sequence[str]) -> Question:
    """Ask on which texts a latent of this label fires."""
    return _judged(_DETECT, label, texts)


def fuzzing(label: str, texts: Sequence[str]) -> Question:
    """Ask in which texts the right tokens are marked."""
    return _judged(_FUZZ, label, texts)


def intruder(texts: Sequence[str]) -> Question:
    """Ask which of the marked texts belongs to another latent."""
    numbers = tuple(str(i + 1) for i in range(len(texts)))
    return _asked(f"{_INTRUDE.format(count=len(texts))}\n\n{_numbered(texts)}", numbers)


def _judged(wording: str, label: str, texts: Sequence[str]) -> Question:
    count = "There is one text." if len(texts) == 1 else f"There are {len(texts)} texts."
    return _asked(f"{wording.format(label=label, count=count)}\n\n{_numbered(texts)}", ("yes", "no"), len(texts))


def _asked(content: str, words: tuple[str, ...] = (), count: int = 1) -> Question:
    return Question((("system", _RESEARCHER), ("user", content)), words, count)


def _numbered(texts: Sequence[str]) -> str:
    return "\n\n".join(f"Text {i}:\n{text}" for i, text in enumerate(texts, 1))
