"""Lay latents out for Neuronpedia's upload: ``POST {url}/api/feature/upload-batch``.

Its limits: `MOST_LATENTS` a request, `MOST_LOGITS` a list, `MOST_TEXT` letters of an explanation, `MOST_TOKENS` a context, and at least one
context, so a latent that never fired cannot be uploaded. Web servers refuse large bodies, so a request ends at `MOST_BYTES` as well.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scopemill.evaluator.exports.neuronpedia import encoded
from scopemill.evaluator.exports.saedashboard import activation
from scopemill.evaluator.exports.subject import Latent, Part, Subject, short
from scopemill.proto.evidence import TOP

MOST_LATENTS, MOST_LOGITS, MOST_TEXT, MOST_TOKENS = 128, 20, 512, 1024
MOST_BYTES = 4_000_000  # of a request's features


@dataclass(frozen=True)
class Batch:
    """Hold the features of one request, as JSON; ``next`` is the first latent after them."""

    features: tuple[str, ...]
    next: int

    def body(self, model: str, source: str) -> bytes:
        """Return the request's body."""
        return f'{{"modelId":{json.dumps(model)},"source":{json.dumps(source)},"features":[{",".join(self.features)}]}}'.encode()

    def halves(self) -> "tuple[Batch, Batch]":
        """Return two batches of half the features each."""
        middle = len(self.features) // 2
        return Batch(self.features[:middle], self.next), Batch(self.features[middle:], self.next)


def batches(subject: Subject, part: Part, first: int = 0) -> Iterator[Batch]:
    """Yield the requests of a part, from the latent ``first`` on."""
    waiting: list[str] = []
    size = next = 0
    for latent in subject.latents(Part(part.layer, part.first + first, part.stop, part.input, part.output)):
        index = first + latent.index
        if latent.examples:
            feature = encoded(uploaded(subject, latent, index))
            if waiting and (len(waiting) == MOST_LATENTS or size + len(feature.encode()) > MOST_BYTES):
                yield Batch(tuple(waiting), index)
                waiting, size = [], 0
            waiting.append(feature)
            size += len(feature.encode())
        next = index + 1
    if waiting:
        yield Batch(tuple(waiting), next)


def uploaded(subject: Subject, latent: Latent, index: int) -> dict[str, Any]:
    """Return a latent as the interface takes it."""
    row, words = latent.row, subject.evidence.vocabulary
    logits = {
        side: [
            {"token": words.text(id), "value": value}
            for id, value in zip(row[f"{name}_tokens"][:MOST_LOGITS], short(row[f"{name}_values"][:MOST_LOGITS]), strict=True)
        ]
        for side, name in (("topLogits", "promoted"), ("bottomLogits", "suppressed"))
    }
    explanations = [{"text": latent.label[:MOST_TEXT], "methodName": None, "modelName": None}] if latent.label else []
    contexts = []
    for example in latent.examples:
        shown = activation(subject, latent, example)
        bounds = [None] * 3 if example.interval == TOP else [shown["bin_min"], shown["bin_max"], shown["bin_contains"]]
        contexts.append(
            {"tokens": shown["tokens"][:MOST_TOKENS], "values": shown["values"][:MOST_TOKENS]}
            | dict(zip(("quantileMin", "quantileMax", "quantileFraction"), bounds, strict=True))
        )
    return {"index": index, "density": row["density"], **logits, "explanations": explanations, "activations": contexts}
