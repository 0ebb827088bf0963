"""Read the text of a fine-tuning: a dataset's packed text, or a corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from scopemill.harvester.config import CorpusConfig, ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.text.packed_text import load_sequences
from scopemill.harvester.text.packing import Sequences, pack_sequences
from scopemill.harvester.text.tokens import tokenized_documents
from scopemill.proto.errors import CorpusError
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket


@dataclass(frozen=True)
class DatasetText:
    """Read the packed text of an activation dataset, shard by shard."""

    bucket_url: str
    dataset: str
    shards: int

    @property
    def identity(self) -> dict[str, object]:
        """Return what decides the sequences."""
        return {"dataset": self.dataset}

    def sequences(self, start: int) -> Iterator[Sequences]:
        """Yield single sequences from number ``start`` on."""
        bucket, layout = Bucket(self.bucket_url), DatasetLayout(self.dataset)
        for shard in range(self.shards):
            block = load_sequences(bucket, layout.packed(shard))
            yield from (block[i : i + 1] for i in range(min(start, len(block)), len(block)))
            start = max(0, start - len(block))


@dataclass(frozen=True)
class CorpusText:
    """Read and pack a corpus, after the first sequences that are reserved for the evaluation."""

    model: ModelConfig
    card: ModelCard
    corpus: CorpusConfig
    context_length: int
    reserved: int

    @property
    def identity(self) -> dict[str, object]:
        """Return what decides the sequences."""
        return {"corpus": self.corpus.model_dump(mode="json"), "context_length": self.context_length, "reserved": self.reserved}

    def sequences(self, start: int) -> Iterator[Sequences]:
        """Yield single sequences from number ``start`` on."""
        yield from islice(self._packed(), self.reserved + start, None)

    def held_out(self) -> Sequences:
        """Return the reserved sequences; CorpusError if the corpus is too short for them."""
        reserved = list(islice(self._packed(), self.reserved))
        if len(reserved) < self.reserved:
            raise CorpusError(
                f"corpus {self.corpus.source!r} has {len(reserved)} sequences of {self.context_length} tokens, and the evaluation alone "
                f"takes {self.reserved}: lower the number of evaluation sequences, or add text to the corpus"
            )
        return Sequences.join(reserved)

    def _packed(self) -> Iterator[Sequences]:
        return pack_sequences(tokenized_documents(self.model, self.card, self.corpus), self.context_length, self.card.bos)


Text = DatasetText | CorpusText


def batches(text: Text, size: int, start: int, steps: int) -> Iterator[Sequences]:
    """Yield the sequences of each step from ``start`` on.

    CorpusError if the text ends before the last step.
    """
    sequences = text.sequences(start * size)
    for step in range(start, steps):
        block = list(islice(sequences, size))
        if len(block) < size:
            raise CorpusError(
                f"the text ends after {step} of {steps} steps of {size} sequences: lower the tokens of fine-tuning to what the text holds, "
                "or add text"
            )
        yield Sequences.join(block)
