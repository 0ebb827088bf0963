"""Find the largest activations of latents: the unit of an edit's amount."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from scopemill.evaluator.evidence.reader import evidence_of
from scopemill.evaluator.fidelity.measure import EvaluationText
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.errors import InputError, MissingObject
from scopemill.proto.hooks import Hook
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.sae.base import Sae


@dataclass(frozen=True)
class Maximum:
    """Hold a latent's largest activation, and where it was seen."""

    sae: str
    latent: int
    value: float
    source: Literal["evidence", "text"]


def maxima(
    lm: LanguageModel, sae: Sae, inputs: tuple[Hook, ...], place: str, latents: Sequence[int], text: EvaluationText
) -> list[Maximum]:
    """Return the largest activation of each latent.

    It is that of the SAE's evidence, which has seen far more rows than any text of a request, or else that on the text. Raises
    InputError for a latent that fires in neither.
    """
    known = _of_evidence(place) if latents else {}
    left = [latent for latent in latents if known.get(latent, 0.0) <= 0]
    on_text = dict(zip(left, largest_activations(lm, sae, inputs, left, text), strict=True)) if left else {}
    found = []
    for latent in latents:
        value = on_text.get(latent, known.get(latent, 0.0))
        if value <= 0:
            raise InputError(
                f"{place}: latent {latent} does not fire on the text{', nor in its evidence' if known else ''}, so its largest activation "
                "is unknown: give a text on which it fires (--text), or the amount in raw activations (--unit raw)"
            )
        found.append(Maximum(place, latent, value, "text" if latent in on_text else "evidence"))
    return found


@torch.inference_mode()
def largest_activations(lm: LanguageModel, sae: Sae, inputs: tuple[Hook, ...], latents: Sequence[int], text: EvaluationText) -> list[float]:
    """Return the largest activation of latents on a text."""
    most = torch.zeros(len(latents))
    for tokens, is_row in text.batches():
        clean = lm.capture(tokens, set(inputs))
        x = torch.cat([clean[hook.name][is_row.to(lm.device)].float() for hook in inputs], dim=1)
        most = torch.maximum(most, sae.encode(x)[:, list(latents)].max(0).values.cpu())
    return most.tolist()


def _of_evidence(place: str) -> dict[int, float]:
    try:
        table = evidence_of(Bucket(place), "").latents(["latent", "max"])
    except MissingObject:
        return {}
    return dict(zip(table.column("latent").to_pylist(), table.column("max").to_pylist(), strict=True))
