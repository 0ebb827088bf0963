"""Commit what is known from some shards, and read it back by ranges of latents.

A part is an SAE's ledger of a list of shards. Its record, written last, commits it; whatever is lost before is done again.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from scopemill.evaluator.evidence.ledger import Ledger
from scopemill.proto.errors import StorageError
from scopemill.proto.layout import EvidenceLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, checksummed_tensors, read_record, read_tensors

RANGE = 2048  # latents of a ledger's object, and of one step of the reduction


@dataclass(frozen=True)
class Sample:
    """Hold the firings in the sampled rows: latents and rows [n]."""

    latents: np.ndarray  # int32
    rows: np.ndarray  # int64: shard and place
    sampled: int

    @staticmethod
    def joined(samples: "Sequence[Sample]") -> "Sample":
        """Return the sample of all rows, in any order of firings."""
        latents, rows = (np.concatenate([vars(sample)[name] for sample in samples]) for name in ("latents", "rows"))
        return Sample(latents, rows, sum(sample.sampled for sample in samples))


@dataclass(frozen=True)
class Part:
    """Describe a committed part."""

    name: str
    shards: tuple[int, ...]
    rows: int
    sequences: int
    sampled: int


def commit_part(
    bucket: Bucket, layout: EvidenceLayout, shards: Sequence[int], ledger: Ledger, sample: Sample, rows: int, sequences: int
) -> None:
    """Commit the ledger and the sampled firings of some shards. Idempotent."""
    name = f"{min(shards):05d}-{hashlib.sha256(repr(sorted(shards)).encode()).hexdigest()[:12]}"
    width = len(ledger.fired)
    for first in range(0, width, RANGE):
        _save(bucket, layout.ledger(name, first), vars(ledger.slice(first, min(first + RANGE, width))))
    _save(bucket, layout.sample(name), {"latents": sample.latents, "rows": sample.rows})
    fields = {"shards": sorted(shards), "rows": rows, "sequences": sequences, "sampled": sample.sampled}
    bucket.write(layout.part(name), checksummed_record(fields))


def committed_parts(bucket: Bucket, layout: EvidenceLayout, wanted: Collection[int]) -> list[Part]:
    """Return committed parts of wanted shards, no shard twice; damaged ones count as absent."""
    parts: list[Part] = []
    taken: set[int] = set()
    for file in bucket.names(layout.parts):
        try:
            fields = read_record(bucket, f"{layout.parts}/{file}")
            part = Part(file.removesuffix(".json"), tuple(fields["shards"]), fields["rows"], fields["sequences"], fields["sampled"])
        except (StorageError, KeyError):
            continue
        if taken.isdisjoint(part.shards) and set(part.shards) <= set(wanted):
            parts.append(part)
            taken |= set(part.shards)
    return parts


def ledgers(bucket: Bucket, layout: EvidenceLayout, parts: Iterable[Part], width: int) -> Iterator[tuple[int, Ledger]]:
    """Yield the merged ledger of each range of latents, with its first latent."""
    names = [part.name for part in parts]
    for first in range(0, width, RANGE):
        whole, *others = (Ledger(**_load(bucket, layout.ledger(name, first))) for name in names)
        for other in others:
            whole = whole.merged(other)
        yield first, whole


def read_sample(bucket: Bucket, layout: EvidenceLayout, parts: Iterable[Part]) -> Sample:
    """Return the sampled rows of all parts."""
    return Sample.joined([Sample(**_load(bucket, layout.sample(part.name)), sampled=part.sampled) for part in parts])


def _save(bucket: Bucket, path: str, arrays: dict[str, np.ndarray]) -> None:
    bucket.write(path, *checksummed_tensors(safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in arrays.items()})))


def _load(bucket: Bucket, path: str) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = safetensors.numpy.load(read_tensors(bucket, path))
    return arrays
