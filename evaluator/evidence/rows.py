"""Give raw rows with their tokens, from shards or the live model.

A place is the number of a token in a shard's packed text: sequence times context length plus position.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from scopemill.harvester.config import CorpusConfig, ModelConfig
from scopemill.harvester.dtypes import TORCH_DTYPES
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.text.packed_text import load_sequences, save_sequences, tokenized_documents
from scopemill.harvester.text.packing import Sequences, pack_sequences, permutation, row_mask
from scopemill.proto.chunks import ArraySpec, read_chunk
from scopemill.proto.dataset import ShardCommit, read_commit, read_manifest
from scopemill.proto.errors import CorpusError, CorruptObject
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket

BATCH = 2048  # rows encoded together; a fixed number, as a product's last bits may depend on it
PASSAGES = 64  # sequences of a shard of text

Rows = tuple[np.ndarray, dict[str, torch.Tensor]]  # places [B], and raw rows [B, d] by hook


class Source(Protocol):
    """Give rows shard by shard."""

    context_length: int

    def text(self, shard: int) -> Sequences:
        """Return the packed text of a shard."""

    def rows(self, shard: int, hooks: Sequence[str]) -> Iterator[Rows]:
        """Yield the rows of a shard."""


class ShardSource:
    """Read the rows of a dataset's shards, each chunk once."""

    def __init__(self, bucket: Bucket, dataset: str, text: str, special: Sequence[int]):
        """``text`` is the folder of the packed text."""
        self._bucket, self._layout, self._text = bucket, DatasetLayout(dataset), text
        self._manifest, self._special = read_manifest(bucket, dataset), special
        self.context_length = self._manifest.context_length

    def text(self, shard: int) -> Sequences:
        """Return the packed text of a shard."""
        return load_sequences(self._bucket, text_path(self._text, shard))

    def rows(self, shard: int, hooks: Sequence[str]) -> Iterator[Rows]:
        """Yield the rows of a shard, in the order of the shard, multiplied by C."""
        commit = read_commit(self._bucket, self._manifest.dataset, shard)
        places = self._places(shard, commit)
        arrays = {hook: _Array(self._bucket, self._layout.array(shard, hook), self._manifest.array(hook), commit) for hook in hooks}
        for start in range(0, commit.rows, BATCH):
            stop = min(start + BATCH, commit.rows)
            yield places[start:stop], {hook: self._raw(hook, array.read(start, stop)) for hook, array in arrays.items()}

    def _raw(self, hook: str, stored: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(stored).view(TORCH_DTYPES[self._manifest.dtype]).float() * self._manifest.hook(hook).scale

    def _places(self, shard: int, commit: ShardCommit) -> np.ndarray:
        """Return the place in the packed text of each row of the shard."""
        block, rows = self.text(shard), commit.rows
        kept = np.flatnonzero(row_mask(block.tokens, self._special))
        if all(hook.norm_limit is None for hook in self._manifest.hooks):
            places = np.empty(rows, np.int64)
            places[permutation(self._manifest.seed, shard, rows)] = kept[:rows]
            return places
        # The outlier filter has dropped rows, and only their labels say which.
        labels = {s.name: self._labels(shard, s, commit) for s in self._manifest.label_arrays}
        length = int(block.position.max()) + 1
        known = block.document.ravel()[kept] * length + block.position.ravel()[kept]
        wanted = labels["document"] * length + labels["position"]
        order = known.argsort(kind="stable")
        places = kept[order[np.searchsorted(known[order], wanted).clip(max=len(order) - 1)]]
        if not np.array_equal(block.tokens.ravel()[places], labels["token_id"]):
            text = self._bucket.place(text_path(self._text, shard))
            raise CorruptObject(
                f"{self._bucket.place(self._layout.shard(shard))} holds other tokens than {text}: harvest the dataset again"
            )
        return places

    def _labels(self, shard: int, spec: ArraySpec, commit: ShardCommit) -> np.ndarray:
        return _Array(self._bucket, self._layout.array(shard, spec.name), spec, commit).read(0, commit.rows).astype(np.int64)


class _Array:
    """Read consecutive rows of one array of a shard."""

    def __init__(self, bucket: Bucket, folder: str, spec: ArraySpec, commit: ShardCommit):
        self._bucket, self._folder, self._spec, self._crcs = bucket, folder, spec, commit.checksums[spec.name]
        self._buffer, self._index, self._rows = memoryview(bytearray(spec.chunk_bytes)), -1, np.empty(0)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``: borrowed, or a copy where they lie in several chunks."""
        size = self._spec.chunk_rows
        parts: list[np.ndarray] = []
        for index in range(start // size, (stop - 1) // size + 1):
            if index != self._index:
                parts = [part.copy() for part in parts]  # the buffer is read into again
                self._rows = read_chunk(self._bucket, self._folder, self._spec, index, self._crcs[index], self._buffer)
                self._index = index
            parts.append(self._rows[max(start - index * size, 0) : stop - index * size])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class ModelSource:
    """Run text through the language model, all hooks in one forward pass."""

    def __init__(self, bucket: Bucket, folder: str, lm: LanguageModel, context_length: int, special: Sequence[int]):
        """``folder`` holds the text that `pack_text` packed."""
        self._bucket, self._folder, self._lm, self._special = bucket, folder, lm, special
        self.context_length = context_length

    def text(self, shard: int) -> Sequences:
        """Return the packed text of a shard."""
        return load_sequences(self._bucket, text_path(self._folder, shard))

    def rows(self, shard: int, hooks: Sequence[str], sequences_per_forward: int = 16) -> Iterator[Rows]:
        """Yield the rows of a shard, in the order of the text."""
        block, parsed = self.text(shard), [Hook.parse(name) for name in hooks]
        for start in range(0, len(block), sequences_per_forward):
            tokens = block.tokens[start : start + sequences_per_forward]
            kept = np.flatnonzero(row_mask(tokens, self._special))
            captured = self._lm.capture(torch.from_numpy(tokens), parsed)
            where = torch.from_numpy(kept).to(self._lm.device)
            yield start * tokens.shape[1] + kept, {name: x.flatten(0, 1)[where].float() for name, x in captured.items()}


def pack_text(bucket: Bucket, folder: str, model: ModelConfig, corpus: CorpusConfig, bos: int, context_length: int, sequences: int) -> int:
    """Pack a corpus into shards of `PASSAGES` sequences and return the number of sequences. Idempotent.

    Raises CorpusError if the corpus has no sequence.
    """
    packed: list[Sequences] = []
    done = 0
    for sequence in pack_sequences(tokenized_documents(model, corpus), context_length, bos):
        packed.append(sequence)
        if len(packed) == PASSAGES or done + len(packed) == sequences:
            save_sequences(bucket, text_path(folder, done // PASSAGES), Sequences.join(packed))
            done, packed = done + len(packed), []
        if done == sequences:
            return done
    if packed:
        save_sequences(bucket, text_path(folder, done // PASSAGES), Sequences.join(packed))
    if not done + len(packed):
        raise CorpusError(
            f"corpus {corpus.source!r} is shorter than one sequence of {context_length} tokens: add text, or lower --context-length"
        )
    return done + len(packed)


def text_path(folder: str, shard: int) -> str:
    """Return the path of a shard of text."""
    return f"{folder}/{shard:05d}.safetensors"
