"""Turn a corpus' documents into tokens: text, conversations, or ids that are tokens already."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from scopemill.harvester.config import CorpusConfig, ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.describe import load_tokenizer, vocabulary
from scopemill.harvester.text.chat import ChatTokenizer
from scopemill.harvester.text.corpus import documents, located_documents
from scopemill.harvester.text.packing import Document
from scopemill.harvester.text.tally import Tally
from scopemill.proto.errors import CorpusError

TOKENIZER_BATCH = 256  # documents per call: the tokenizer works on them in parallel


def tokenized_documents(model: ModelConfig, card: ModelCard, corpus: CorpusConfig, tally: Tally | None = None) -> Iterator[Document]:
    """Yield each document's tokens, without the BOS that packing puts before it.

    Raises CorpusError if the corpus cannot be read, or a document has no tokens of this model.
    """
    tally = Tally() if tally is None else tally
    if corpus.holds == "text":
        yield from _of_text(model, corpus, tally)
    elif corpus.holds == "messages":
        chat = ChatTokenizer(load_tokenizer(model), corpus.roles)
        for where, conversation in located_documents(corpus, tally):
            yield _without_bos(chat(where, conversation), card.bos)
    else:
        size = vocabulary(model)
        for where, ids in located_documents(corpus, tally):
            yield _without_bos(Document(_checked_ids(where, ids, size, corpus.column)), card.bos)


def _of_text(model: ModelConfig, corpus: CorpusConfig, tally: Tally) -> Iterator[Document]:
    tokenizer = load_tokenizer(model)
    texts = documents(corpus, tally)
    while batch := list(islice(texts, TOKENIZER_BATCH)):
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            yield Document(np.asarray(ids, dtype=np.int64))


def _without_bos(document: Document, bos: int) -> Document:
    """Return a document without a BOS at its start: packing puts one there."""
    if len(document.tokens) and document.tokens[0] == bos:
        return Document(document.tokens[1:], None if document.wanted is None else document.wanted[1:])
    return document


def _checked_ids(where: str, ids: list[object], size: int, column: str) -> np.ndarray:
    """Return token ids as an array. Raises CorpusError for anything that is no id of the model."""
    wrong = next((i for i, one in enumerate(ids) if type(one) is not int or not 0 <= one < size), None)
    if wrong is not None:
        raise CorpusError(
            f"{where}: column {column!r} holds {ids[wrong]!r} at place {wrong}, and the model's token ids are whole numbers from 0 to "
            f"{size - 1}: take rows that the model's own tokenizer made"
        )
    return np.asarray(ids, dtype=np.int64)
