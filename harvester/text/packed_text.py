"""Packed text: a corpus tokenised, cut into sequences and kept in the bucket."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import safetensors.numpy

from scopemill.harvester.config import CorpusConfig, ModelConfig
from scopemill.harvester.language_model.card import load_tokenizer
from scopemill.harvester.task import HarvestTask
from scopemill.harvester.text import corpus as corpora
from scopemill.harvester.text.packing import Sequences, buckets, sequences
from scopemill.proto.errors import CorpusError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, checksummed_tensors, read_record, read_tensors

TOKENIZER_BATCH = 256  # documents at once: the tokenizer works on them in parallel


def tokenized(model: ModelConfig, corpus: CorpusConfig) -> Iterator[np.ndarray]:
    """The tokens of each document, without special ones."""
    tokenizer = load_tokenizer(model)
    documents = corpora.documents(corpus)
    while batch := list(islice(documents, TOKENIZER_BATCH)):
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            yield np.asarray(ids, dtype=np.int64)


def pack_corpus(task: HarvestTask) -> int:
    """Pack the corpus into buckets of rows and commit them; returns how many there are.

    CorpusError if what is left after the reserved sequences fills no bucket.
    """
    bucket, layout, corpus, harvest = task.bucket, task.text_layout, task.corpus, task.config
    if bucket.exists(layout.packing):
        return read_record(bucket, layout.packing)["shards"]
    packed = sequences(tokenized(task.model, corpus), harvest.context_length, task.card.bos)
    if task.reserved:
        held = list(islice(packed, task.reserved))
        if len(held) < task.reserved:
            raise CorpusError(f"corpus {corpus.source!r} has {len(held)} sequences; evaluation alone reserves {task.reserved}")
        save_sequences(bucket, layout.reserved, Sequences.join(held))
    spare = int(harvest.rows_per_shard * harvest.outlier_spare) if harvest.outlier_norm else 0
    shards = 0
    complete = buckets(packed, harvest.rows_per_shard + spare, task.card.special)
    for block in islice(complete, harvest.tokens // harvest.rows_per_shard):
        save_sequences(bucket, layout.packed(shards), block)
        shards += 1
    if not shards:
        raise CorpusError(
            f"corpus {corpus.source!r} is shorter than one shard: lower harvest.rows_per_shard ({harvest.rows_per_shard}) or give more text"
        )
    bucket.create(layout.packing, checksummed_record({"shards": shards, "identity": task.text_identity}))
    return shards


def save_sequences(bucket: Bucket, path: str, block: Sequences) -> None:
    bucket.write(path, *checksummed_tensors(safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in vars(block).items()})))


def load_sequences(bucket: Bucket, path: str) -> Sequences:
    return Sequences(**safetensors.numpy.load(read_tensors(bucket, path)))
