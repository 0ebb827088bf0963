"""Pack a corpus into buckets and store them: packed text."""

import hashlib
from collections.abc import Iterator
from itertools import islice

import numpy as np
import safetensors.numpy

from scopemill.harvester.task import HarvestTask
from scopemill.harvester.text.packing import Sequences, group_into_buckets, pack_sequences
from scopemill.harvester.text.tally import Tally
from scopemill.harvester.text.tokens import tokenized_documents
from scopemill.proto.errors import CorpusError
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, checksummed_tensors, read_record, read_tensors


def pack_corpus(task: HarvestTask) -> int:
    """Pack the corpus into buckets, commit them and return their number. Idempotent.

    Raises CorpusError if the corpus is too short for the reserved sequences and one bucket.
    """
    bucket, layout, harvest = task.bucket, task.text_layout, task.config
    if bucket.exists(layout.packing):
        return read_record(bucket, layout.packing)["shards"]
    tally = Tally()
    tokenized = tokenized_documents(task.model, task.card, task.corpus, tally)
    packed = pack_sequences(tokenized, harvest.context_length, task.card.bos, harvest.drop_first_positions)
    if task.reserved:
        _reserve(task, packed)
    spare = int(harvest.rows_per_shard * harvest.outlier_spare) if harvest.outlier_norm else 0
    shards, digest = 0, hashlib.sha256()
    complete = group_into_buckets(packed, harvest.rows_per_shard + spare, task.card.special)
    for block in islice(complete, harvest.tokens // harvest.rows_per_shard):
        save_sequences(bucket, layout.packed(shards), block)
        digest.update(block.tokens.tobytes())
        shards += 1
    if not shards:
        raise CorpusError(
            f"corpus {task.corpus.source!r} is shorter than one shard: lower harvest.rows_per_shard ({harvest.rows_per_shard}) "
            f"or add text to the corpus (it gave {tally.sentence()})"
        )
    read = {"corpus": tally.to_record(), "read": tally.sentence(), "text": digest.hexdigest()}
    record = {"shards": shards, "identity": task.text_identity} | read
    bucket.create(layout.packing, checksummed_record(record))
    return shards


def what_was_read(bucket: Bucket, layout: DatasetLayout) -> str:
    """Return a sentence on what packing read and left out.

    It is empty for text that an earlier version packed.
    """
    return str(read_record(bucket, layout.packing).get("read", "")) if bucket.exists(layout.packing) else ""


def packed_checksum(task: HarvestTask) -> str | None:
    """Return the checksum of the packed text; None where an earlier version packed it."""
    return read_record(task.bucket, task.text_layout.packing).get("text")


def _reserve(task: HarvestTask, packed: Iterator[Sequences]) -> None:
    """Take the first sequences of the corpus and store them for the evaluation."""
    reserved = list(islice(packed, task.reserved))
    if len(reserved) < task.reserved:
        raise CorpusError(
            f"corpus {task.corpus.source!r} has {len(reserved)} sequences; evaluation alone reserves {task.reserved}: "
            "lower evaluation.sequences, name an evaluation.corpus, or add text to the corpus"
        )
    save_sequences(task.bucket, task.text_layout.reserved, Sequences.join(reserved))


def save_sequences(bucket: Bucket, path: str, block: Sequences) -> None:
    """Write sequences as one checksummed safetensors object.

    The mask of wanted tokens is left out where it is True throughout, as in the first version's files.
    """
    arrays = {name: np.ascontiguousarray(x) for name, x in vars(block).items() if name != "wanted" or not x.all()}
    bucket.write(path, *checksummed_tensors(safetensors.numpy.save(arrays)))


def load_sequences(bucket: Bucket, path: str) -> Sequences:
    """Read sequences that ``save_sequences`` wrote."""
    arrays = safetensors.numpy.load(read_tensors(bucket, path))
    return Sequences(**{"wanted": np.ones(arrays["tokens"].shape, dtype=bool)} | arrays)
