"""Write conversations out by a chat template, and find what each role says."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from scopemill.harvester.text.packing import Document
from scopemill.proto.errors import CorpusError

Message = dict[str, Any]  # role and content, and what else a template may read
_MARK = re.compile("\ue000\\d+\ue001")
# Names of another convention, whose messages are {from, value}.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


class ChatTokenizer:
    """Turn conversations into tokens, of which those of chosen roles may be rows.

    Raises CorpusError for a tokenizer without a chat template, or one that cannot tell where a token stands.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, roles: Collection[str] | None):
        self._tokenizer, self._roles = tokenizer, roles
        if not tokenizer.chat_template:
            raise CorpusError(
                f"corpus.holds: the tokenizer of {tokenizer.name_or_path} has no chat template, so it cannot write messages out: name the "
                "instruction-tuned model, or a corpus of text"
            )
        if roles is not None and not tokenizer.is_fast:
            raise CorpusError(
                f"corpus.roles: the tokenizer of {tokenizer.name_or_path} does not tell where its tokens stand in the text: it needs a "
                "tokenizer.json, or leave roles out"
            )

    def __call__(self, where: str, conversation: list[Any]) -> Document:
        """Return a conversation's document. Raises CorpusError, which names the place, if the template refuses it."""
        messages = [as_message(where, number, message) for number, message in enumerate(conversation, 1)]
        text = self._written(where, messages)
        if self._roles is None:
            return Document(np.asarray(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64))
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts, ends = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        wanted = np.zeros(len(starts), dtype=bool)
        for message, span in zip(messages, self._spans(where, messages, text), strict=True):
            if message["role"] in self._roles:
                wanted |= (starts < span.stop) & (ends > span.start)
        return Document(np.asarray(encoded["input_ids"], dtype=np.int64), wanted)

    def _written(self, where: str, messages: list[Message]) -> str:
        """Return the text of a conversation."""
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # whatever the template's author raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CorpusError(f"{where}: the chat template refuses this conversation: {reason}") from error

    def _spans(self, where: str, messages: list[Message], text: str) -> list[range]:
        """Return where each message's content stands in the text: empty where it has none.

        The conversation is written a second time with marks for its contents. What is between the marks is the template's, and stands
        in the text too.
        """
        speaking = [number for number, message in enumerate(messages) if _content(message)]
        marks = {number: f"\ue000{number}\ue001" for number in speaking}  # private characters, which no template looks for
        marked = self._written(where, [m | {"content": marks[n]} if n in marks else m for n, m in enumerate(messages)])
        between = re.split("|".join(marks.values()) or "(?!)", marked)
        in_order = _MARK.findall(marked) == list(marks.values())
        spans, place = [range(0)] * len(messages), len(between[0])
        rewritten = next(iter(speaking), 0) if not in_order or not text.startswith(between[0]) else None
        for number, after in zip(speaking if rewritten is None else (), between[1:], strict=False):
            written = next((form for form in _forms(messages[number]) if text.startswith(form + after, place)), None)
            if written is None:
                rewritten = number
                break
            spans[number] = range(place, place + len(written))
            place += len(written) + len(after)
        if rewritten is not None:
            raise CorpusError(
                f"{where}: the chat template rewrites message {rewritten + 1}, so what its role says cannot be told from the rest: leave "
                "corpus.roles out"
            )
        return spans


def as_message(where: str, number: int, message: Any) -> Message:
    """Return a message with ``role`` and ``content``.

    Raises CorpusError, which names the place, if the message has none.
    """
    if isinstance(message, Mapping):
        named: Message = {key: value for key, value in message.items() if value is not None}
        if "from" in named and "value" in named:
            named = {"role": _ROLES.get(named["from"], named["from"]), "content": named["value"]}
        if isinstance(named.get("role"), str) and isinstance(named.setdefault("content", ""), str):
            return named
    raise CorpusError(f"{where}: message {number} is no mapping of a role and a content, both text, such as {{role: user, content: Hello}}")


def _content(message: Message) -> str:
    return str(message["content"]).strip()


def _forms(message: Message) -> list[str]:
    """Return what a template may write for a content: the whole, or without spaces at its ends."""
    content = str(message["content"])
    return [content, content.strip(), content.lstrip(), content.rstrip()]
