"""Hold what is exported: an SAE's evidence, beside its weights, one latent after another.

A cross-layer transcoder has a part for each layer, and so has a per-layer one; every other SAE is one part. Legend of shapes: F latents,
d_out width of all outputs side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import torch

from scopemill.evaluator.evidence.reader import Evidence, evidence_of
from scopemill.proto.errors import InputError
from scopemill.proto.evidence import BINS, INTERVALS, TOP, Example
from scopemill.proto.hooks import Hook
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import FinishedSae, read_finished
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.crosslayer import CrossLayerTranscoder

DIGITS = 6  # of an exported number: a float32 has no more than 8, and files of them would be a third longer


@dataclass(frozen=True)
class Latent:
    """Hold one latent: ``index`` counts from 0 in its part, ``row`` is that of `schema.LATENTS`."""

    index: int
    row: dict[str, Any]
    examples: list[Example]
    label: str | None = None
    score: float | None = None

    @property
    def fires(self) -> bool:
        """Return whether the latent fired on any row."""
        return bool(self.row["fired"])

    def interval(self, example: Example) -> tuple[float, float, float]:
        """Return the bounds of an example's interval, and the share of all firings in it."""
        assert example.interval != TOP
        size, bins = self.row["histogram_range"] / INTERVALS, BINS // INTERVALS
        inside = sum(self.row["histogram"][example.interval * bins : (example.interval + 1) * bins])
        return size * example.interval, size * (example.interval + 1), inside / self.row["fired"]


@dataclass(frozen=True)
class Part:
    """Hold the latents of one layer, from ``first`` to ``stop``.

    They read ``input`` and write to ``output``, or from there on.
    """

    layer: int
    first: int
    stop: int
    input: str
    output: str

    @property
    def width(self) -> int:
        """Return the number of latents."""
        return self.stop - self.first


class Subject:
    """Read an SAE and its evidence for an export."""

    def __init__(self, folder: str, evidence: Evidence, finished: FinishedSae):
        self.folder, self.evidence, self.finished = folder, evidence, finished
        if evidence.record.width != self.sae.width:
            raise InputError(
                f"{folder}: the SAE has {self.sae.width} latents and its evidence {evidence.record.width}: make it again with scopemill "
                "evidence"
            )
        finished.hooks(folder)

    @staticmethod
    def open(folder: str) -> "Subject":
        """Open a finished SAE's folder; MissingObject if it has no evidence."""
        return Subject(folder, evidence_of(Bucket(folder), ""), read_finished(folder))

    @property
    def sae(self) -> Sae:
        """Return the SAE."""
        return self.finished.sae

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Return the parts, by layer."""
        inputs, outputs = self.finished.hooks(self.folder)
        if not isinstance(self.sae, CrossLayerTranscoder):
            return (Part(inputs[0].layer, 0, self.sae.width, inputs[0].name, outputs[-1].name),)
        starts = pairwise(range(0, self.sae.width + 1, self.sae.per_layer))
        return tuple(
            Part(read.layer, first, stop, read.name, written.name)
            for read, written, (first, stop) in zip(inputs, outputs, starts, strict=True)
        )

    def latents(self, part: Part) -> Iterator[Latent]:
        """Yield the latents of a part in order; one block is in memory."""
        labels = self._labels
        rows, contexts = self.evidence.rows(part.first, part.stop), self.evidence.all_examples(part.first, part.stop)
        for row, (latent, examples) in zip(rows, contexts, strict=True):
            label, score = labels.get(latent, (None, None))
            yield Latent(latent - part.first, row, examples, label, score)

    @torch.no_grad()
    def directions(self, latents: Sequence[int]) -> torch.Tensor:
        """Return the decoder rows [n, d_out] of some latents, zero where they do not write."""
        if not isinstance(self.sae, CrossLayerTranscoder):
            return self.sae.W_dec[list(latents)]
        rows = self.sae.b_dec.new_zeros(len(latents), self.sae.d_out)
        for place, latent in enumerate(latents):
            layer, inside = divmod(latent, self.sae.per_layer)
            reach = self.sae.reach(layer)
            rows[place, reach.start : reach.stop] = self.sae.W_dec[layer][inside]
        return rows

    @property
    def single(self) -> Hook | None:
        """Return the one hook that the SAE writes to; None for SAEs of several."""
        outputs = self.finished.hooks(self.folder)[1]
        return outputs[0] if len(outputs) == 1 else None

    @cached_property
    def _labels(self) -> dict[int, tuple[str, float | None]]:
        return self.evidence.labels()


def blocks(latents: Iterator[Latent], size: int) -> Iterator[list[Latent]]:
    """Yield lists of so many latents; the last may be shorter."""
    while block := list(islice(latents, size)):
        yield block


def short(values: Sequence[float]) -> list[float]:
    """Return numbers with few digits, so that files stay small."""
    return [float(f"{value:.{DIGITS}g}") if value else 0.0 for value in values]
