"""Define the records of an SAE's evidence; the tables beside them are in `evaluator.evidence.schema`."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT = 1
BINS = 128  # of a latent's histogram, over [0, histogram_range)
INTERVALS = 8  # of the same range, each with samples of its own
BLOCK_LATENTS = 16  # latents in a record batch of examples
TOP = -1  # the interval of an example that is one of the top contexts


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredObject(_Record):
    """Describe one object that the record commits."""

    bytes: int
    crc32c: int


class EvidenceRecord(_Record):
    """Hold ``evidence.json``: its subject, its making, and where its blocks are."""

    format: int = FORMAT
    sae: str  # the SAE's folder in its bucket
    model: str  # the last part of its name
    model_place: str  # the Hugging Face id or folder that it was loaded from
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    architecture: str
    width: int
    source: Literal["shards", "model"]  # rows as stored in shards, or as the live model gives them
    dataset: str  # of shards, or the corpus
    dtype: str  # of the rows: shards may hold bfloat16
    rows: int
    sequences: int
    context_length: int
    alive: int  # latents that fired
    settings: dict[str, Any]
    objects: dict[str, StoredObject]
    blocks: str  # where each record batch starts, and where the last ends: little-endian uint64 as base64
    block_checksums: str  # CRC-32C of each record batch: little-endian uint32 as base64


@dataclass(frozen=True)
class Example:
    """Hold one context of a latent: see `EXAMPLE`."""

    interval: int
    value: float
    peak: int
    document: int
    position: int
    shard: int
    sequence: int
    start: int
    tokens: list[int]
    activations: list[float]
