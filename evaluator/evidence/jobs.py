"""Describe evidence to make: an SAE, its rows, and the settings."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scopemill.evaluator.config import EvidenceConfig
from scopemill.evaluator.evidence.reader import Evidence
from scopemill.proto.dataset import committed_identity, committed_shards, read_manifest
from scopemill.proto.errors import InputError, StorageError
from scopemill.proto.evidence import FORMAT
from scopemill.proto.layout import DatasetLayout, EvidenceLayout
from scopemill.proto.storage.bucket import Bucket

SAMPLES, SAMPLE_BYTES = 16, 2**16  # of a weights file: reading all would take minutes
WEIGHTS = ("sae_weights.safetensors", "params.npz", "params.safetensors", "ae.safetensors", "ae.pt", "sae.safetensors")


@dataclass(frozen=True)
class RowsFrom:
    """Describe where rows come from."""

    kind: Literal["shards", "model"]
    url: str  # the bucket of shards or packed text
    dataset: str  # of the shards, or the corpus
    text: str  # the folder of the packed text
    identity: dict[str, Any]  # everything that decides the rows
    context_length: int
    dtype: str
    shards: tuple[int, ...]
    rows: int  # of all shards, about


@dataclass(frozen=True)
class EvidenceJob:
    """Describe one SAE whose evidence is to be made."""

    url: str  # the bucket that holds the SAE
    root: str  # the SAE's folder in it; empty if the bucket is the folder
    settings: dict[str, Any] = field(hash=False)
    hooks: tuple[str, ...] = ()  # that the SAE reads, if known: SAEs of the same hooks share a read
    page: bool = False  # a static page is wanted too

    @property
    def layout(self) -> EvidenceLayout:
        """Return the paths of the evidence."""
        return EvidenceLayout(self.root, settings_hash(self.settings))

    @property
    def folder(self) -> str:
        """Return the SAE's folder as a path or URL."""
        return f"{self.url}/{self.root}" if self.root else self.url

    def open(self) -> Evidence:
        """Open the evidence; MissingObject if it is not committed."""
        return Evidence.open(Bucket(self.url), self.root, settings_hash(self.settings))

    def done(self, read: bool = False) -> bool:
        """Return True if evidence, and the page where one is wanted, are made."""
        return self.made(read) and (not self.page or Bucket(self.url).exists(self.layout.page_index))

    def made(self, read: bool = False) -> bool:
        """Return True if the evidence is committed and undamaged; with ``read``, every byte is checked."""
        try:
            return Bucket(self.url).exists(self.layout.record) and self.open().is_whole(read)
        except StorageError:
            return False


def job_of(url: str, root: str, rows: RowsFrom, config: EvidenceConfig, hooks: tuple[str, ...] = ()) -> EvidenceJob:
    """Return the job to make an SAE's evidence from rows."""
    settings = {
        "format": FORMAT,
        "weights": weights_digest(Bucket(url), root),
        "source": rows.kind,
        "rows": _digest([rows.identity, sorted(rows.shards)]),
        **config.settings,
    }
    return EvidenceJob(url, root, settings, hooks, config.page)


def shard_rows(bucket: Bucket, dataset: str, text: str) -> RowsFrom | None:
    """Describe the committed shards of a dataset; None if none is left."""
    shards = tuple(sorted(committed_shards(bucket, dataset)))
    if not shards or not bucket.exists(DatasetLayout(dataset).manifest):
        return None
    manifest = read_manifest(bucket, dataset)
    identity = committed_identity(bucket, DatasetLayout(dataset).manifest)
    rows = len(shards) * manifest.rows_per_shard
    folder = f"{DatasetLayout(text).root}/packed"
    return RowsFrom("shards", bucket.url, dataset, folder, identity, manifest.context_length, manifest.dtype, shards, rows)


def packed_rows(bucket: Bucket, dataset: str, text: str, dtype: str) -> RowsFrom:
    """Describe the packed text of a dataset without shards, to run through the live model.

    Raises InputError if the text is gone too.
    """
    layout = DatasetLayout(text)
    folder = f"{layout.root}/packed"
    names = [name.removesuffix(".safetensors") for name in bucket.names(folder)]
    shards = tuple(sorted(int(name) for name in names if name.isdigit()))
    if not shards or not bucket.exists(DatasetLayout(dataset).manifest):
        raise InputError(
            f"dataset {dataset!r} in {bucket.url} has neither shards nor packed text left: name a text of your own with scopemill evidence "
            "SAE-FOLDER --model MODEL --corpus FILE"
        )
    manifest = read_manifest(bucket, dataset)
    identity = committed_identity(bucket, DatasetLayout(dataset).manifest)
    rows = len(shards) * manifest.rows_per_shard
    return RowsFrom("model", bucket.url, dataset, folder, identity, manifest.context_length, dtype, shards, rows)


def settings_hash(settings: dict[str, Any]) -> str:
    """Return the name of the evidence of these settings."""
    return _digest(settings)[:16]


def weights_digest(bucket: Bucket, root: str) -> str:
    """Return a hash of samples of an SAE's weights.

    Raises InputError for a folder without an SAE.
    """
    prefix = f"{root}/" if root else ""
    for name in WEIGHTS:
        size = bucket.size(prefix + name)
        if size is not None:
            digest = hashlib.sha256(f"{name} {size}".encode())
            for i in range(SAMPLES):
                start = size * i // SAMPLES
                digest.update(bucket.read_range(prefix + name, start, min(start + SAMPLE_BYTES, size)))
            return digest.hexdigest()[:16]
    raise InputError(f"{bucket.place(root) if root else bucket.url} is not a finished SAE: it holds none of {', '.join(WEIGHTS)}")


def tasks(jobs: Sequence[EvidenceJob], rows: RowsFrom, actors: int) -> list[tuple[tuple[EvidenceJob, ...], tuple[int, ...]]]:
    """Divide counting into tasks: jobs that share a read, and one part's shards.

    SAEs of the same hooks share a read; from the live model all do.
    """
    groups: dict[tuple[str, ...], list[EvidenceJob]] = {}
    for job in jobs:
        groups.setdefault(job.hooks if rows.kind == "shards" else (), []).append(job)
    most = max(1, min(8, -(-len(rows.shards) // actors)))  # a killed actor loses no more than a part
    cut = [rows.shards[start : start + most] for start in range(0, len(rows.shards), most)]
    return [(tuple(group), shards) for shards in cut for group in groups.values()]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
