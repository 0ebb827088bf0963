"""Conversations become the tokens that their model was trained on, and what each role says is found in them."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_templates import BARE, CHATML, GEMMA, MISTRAL

from scopemill.harvester.language_model.describe import load_tokenizer
from scopemill.harvester.text.chat import ChatTokenizer
from scopemill.proto.errors import CorpusError

TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "mistral": MISTRAL, "bare": BARE}
REWRITING = "{% for m in messages %}{{ m['role'] }}: {{ m['content'].split('</think>')[-1] | upper }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(model):
    return load_tokenizer(model)


@pytest.fixture
def chat(tokenizer, monkeypatch):
    def make(template: str, roles=None) -> ChatTokenizer:
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return ChatTokenizer(tokenizer, roles)

    return make


def said(tokenizer, document) -> str:
    return tokenizer.decode(document.tokens[document.wanted])


def messages(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


# Contents that look like a template's own words, repeat each other, and have spaces at their ends. transformers' mask needs a word in each.
words = st.sampled_from(["user", "assistant", "model", "\n", " ", "<|im_end|>", "[/INST]", "x = 1", "def f():", "user\n", "  ", "."])
contents = st.lists(words, min_size=1, max_size=5).map("".join).filter(str.strip)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(TEMPLATES)), st.lists(contents, min_size=1, max_size=5))
def test_tokens_and_the_assistants_share_are_those_of_transformers(tokenizer, template, contents):
    conversation = messages(*contents)
    before, tokenizer.chat_template = tokenizer.chat_template, TEMPLATES[template]
    try:
        found = ChatTokenizer(tokenizer, ("assistant",))("here", conversation)
        everything = ChatTokenizer(tokenizer, None)("here", conversation)
        theirs = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    finally:
        tokenizer.chat_template = before
    assert found.tokens.tolist() == everything.tokens.tolist() == list(theirs["input_ids"]) and everything.wanted is None
    np.testing.assert_array_equal(found.wanted, np.array(theirs["assistant_masks"], dtype=bool))


@pytest.mark.parametrize("silent", ["", " \n", None])
def test_a_message_without_words_has_no_rows(chat, tokenizer, silent):
    conversation = [*messages("a", "b", "c"), {"role": "assistant", "content": silent, "tool_calls": []}]
    document = chat(CHATML, ("assistant",))("here", conversation)
    assert said(tokenizer, document) == "b"
    assert not chat(CHATML, ("assistant",))("here", messages("a")).wanted.any()


def test_each_role_has_what_it_says_and_the_template_has_its_own(chat, tokenizer):
    conversation = [{"role": "system", "content": "be kind"}, *messages("user", " assistant: user\n", "and now?", "yes")]
    for roles, expected in {
        ("system",): ["be kind"],
        ("user",): ["user", "and now?"],
        ("assistant",): ["assistant: user", "yes"],
        ("system", "assistant"): ["be kind", "assistant: user", "yes"],
        ("nobody",): [],
    }.items():
        found = said(tokenizer, chat(CHATML, roles)("here", conversation))
        assert re.sub(r"\s+", "", found) == re.sub(r"\s+", "", "".join(expected)), roles


def test_every_byte_of_a_character_counts(chat, tokenizer):
    assert said(tokenizer, chat(CHATML, ("assistant",))("here", messages("\u4e2d", "\u4e2d\u6587"))) == "\u4e2d\u6587"


def test_messages_of_from_and_value_are_the_same_conversation(chat):
    ours = chat(CHATML, ("assistant",))("here", messages("a", "b"))
    theirs = chat(CHATML, ("assistant",))("here", [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}])
    assert ours.tokens.tolist() == theirs.tokens.tolist() and ours.wanted.tolist() == theirs.wanted.tolist()


@pytest.mark.parametrize(
    ("template", "conversation", "words"),
    [
        (
            GEMMA,
            [{"role": "system", "content": "x"}],
            "file, line 3: the chat template refuses this conversation: System role not supported",
        ),
        (REWRITING, messages("<think>x</think>hello", "y"), "file, line 3: the chat template rewrites message 1"),
        (CHATML, [{"role": "user"}, "text"], "file, line 3: message 2 is no mapping of a role and a content"),
        (CHATML, [{"role": "user", "content": [{"type": "image"}]}], "file, line 3: message 1 is no mapping of a role and a content"),
        (CHATML, [{"content": "x"}], "file, line 3: message 1 is no mapping of a role and a content"),
    ],
)
def test_a_conversation_that_cannot_be_written_is_named(chat, template, conversation, words):
    with pytest.raises(CorpusError) as caught:
        chat(template, ("user",))("file, line 3", conversation)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_a_template_or_without_places_is_refused(chat, tokenizer, monkeypatch):
    with pytest.raises(CorpusError, match="gemma-2-stdlib has no chat template, so it cannot write messages out"):
        chat(None)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    chat(CHATML, None)
    with pytest.raises(CorpusError, match="corpus.roles: the tokenizer of .* does not tell where its tokens stand"):
        chat(CHATML, ("user",))
