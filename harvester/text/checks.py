"""Check a corpus before any work: files, first documents and their tokens."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from scopemill.harvester.config import CorpusConfig, ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.text.corpus import corpus_files, documents, file_documents
from scopemill.harvester.text.files import CorpusFiles
from scopemill.harvester.text.tally import Tally
from scopemill.harvester.text.tokens import tokenized_documents
from scopemill.proto.errors import CorpusError

CHECKED_FILES = 1000  # at most, evenly spaced: a store answers each after some milliseconds
CHECKED_CONVERSATIONS = 200
FILES_AT_ONCE = 16


def check_corpus(model: ModelConfig, card: ModelCard, corpus: CorpusConfig) -> Tally:
    """Read the first document of each file.

    Returns which files are read, and which are left out. Raises CorpusError if a file cannot be read, if there is no text, or if the
    model has no tokens for a document.
    """
    tally = Tally()
    found = corpus.format != "hub" and _first_documents(corpus, corpus_files(corpus, tally), tally)
    if not found and next(documents(corpus), None) is None:
        but = f" (left out: {tally.left_out})" if tally.left_out else ""
        raise CorpusError(f"corpus {corpus.source!r} is empty: none of its documents has any text{but}")
    if corpus.holds != "text":
        _check_tokens(model, card, corpus)
    return tally


def _first_documents(corpus: CorpusConfig, files: CorpusFiles, tally: Tally) -> bool:
    """Read the first document of each file, and count the files without text. Returns whether there was a document."""
    step = -(-len(files.names) // CHECKED_FILES)

    def first_of(name: str) -> tuple[bool, Tally]:
        own = Tally()
        return next(file_documents(corpus, files, name, own), None) is not None, own

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        looks = list(pool.map(first_of, files.names[::step]))
    for _, own in looks:
        tally.leave_out_as(own)
    return any(has_document for has_document, _ in looks)


def _check_tokens(model: ModelConfig, card: ModelCard, corpus: CorpusConfig) -> None:
    """Raise CorpusError if the first documents have no tokens, or no row."""
    first = list(islice(tokenized_documents(model, card, corpus), CHECKED_CONVERSATIONS))
    if not any(document.wanted is None or document.wanted.any() for document in first):
        roles = ", ".join(corpus.roles or ())
        raise CorpusError(
            f"corpus.roles: in the first {len(first)} conversations of {corpus.source!r} nobody of the roles {roles} says anything: name "
            "the roles as the corpus does"
        )
