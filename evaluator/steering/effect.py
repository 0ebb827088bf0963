"""Measure what steering does, beside a random push of the same size.

Legend of shapes: S sequences, T positions, n latents, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from scopemill.evaluator.evidence.logits import Readout
from scopemill.evaluator.fidelity.measure import EvaluationText
from scopemill.evaluator.steering.generation import repeated
from scopemill.evaluator.steering.scores import direct_logits, most_promoted, pushes
from scopemill.evaluator.steering.steering import SteeredSae, Steering
from scopemill.harvester.language_model.model import LanguageModel

DOSES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MOST_REPEATED = 0.5  # of a text's 3-grams; above this share it has collapsed


@dataclass(frozen=True)
class Effect:
    """Record what a configuration does to a text, next token by next token."""

    kl: float  # of the clean predictions against the steered ones, nats per token
    delta_loss: float  # nats per token
    promoted: float  # probability of the tokens that the edited latents promote
    promoted_before: float


@dataclass(frozen=True)
class Dose:
    """Record one point of a dose curve: the steering and the random push."""

    dose: float
    steered: Effect
    control: Effect
    repeated: float  # share of repeated 3-grams of a generated text

    def collapsed(self, clean_loss: float) -> bool:
        """Return whether text has collapsed.

        It has once the loss has doubled, or most of a text repeats itself.
        """
        return self.steered.delta_loss > clean_loss or self.repeated > MOST_REPEATED


@torch.inference_mode()
def measure_effect(lm: LanguageModel, steering: Steering, text: EvaluationText, promoted: Sequence[int]) -> Effect:
    """Measure a configuration on held-out text. Sums are float64."""
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    chosen = torch.as_tensor(promoted, dtype=torch.long, device=lm.device)
    for tokens, is_row in text.batches():
        clean, steered = (lm.logits(tokens, edits)[0].float().log_softmax(-1) for edits in ({}, steering.edits(is_row)))
        counted = is_row.to(lm.device)[:, 1:]
        targets = tokens[:, 1:].to(lm.device).long()[..., None]
        p, q = clean[:, :-1][counted], steered[:, :-1][counted]
        losses = [-x[:, :-1].gather(-1, targets)[..., 0][counted].double().sum() for x in (clean, steered)]
        kl = (p.exp() * (p - q)).sum(-1).double().sum()
        masses = [x[:, chosen].exp().sum(-1).double().sum() for x in (p, q)]
        sums += torch.stack([kl, losses[1] - losses[0], masses[1], masses[0]]).cpu()
        count += len(p)
    return Effect(*(sums / count).tolist())


@torch.inference_mode()
def clean_loss(lm: LanguageModel, text: EvaluationText) -> float:
    """Return the clean model's mean loss in nats per token."""
    losses = [lm.token_losses(tokens)[is_row.to(lm.device)[:, 1:]].double() for tokens, is_row in text.batches()]
    return float(torch.cat(losses).mean())


@torch.inference_mode()
def promoted_tokens(out: Readout, saes: Sequence[SteeredSae]) -> list[int]:
    """Return the output tokens that the edited latents promote, by direct logits."""
    logits = []
    for steered in saes:
        for edit in steered.edits:
            less = edit.op == "ablate" or (edit.amount or 0) < (1 if edit.op == "scale" else 0)
            logits.append(direct_logits(out, steered, pushes(steered, [edit.latent], [-1.0 if less else 1.0]))[0])
    return most_promoted(out, torch.stack(logits).sum(0)).tolist()


def dose_curve(
    lm: LanguageModel,
    out: Readout,
    saes: Sequence[SteeredSae],
    text: EvaluationText,
    written: Callable[[Steering], list[int]],
    doses: Sequence[float] = DOSES,
    seed: int = 0,
) -> list[Dose]:
    """Measure steering at several doses, multiples of the edits' amounts.

    ``written`` generates a text under a steering.
    """
    promoted, curve = promoted_tokens(out, saes), []
    for dose in doses:
        dosed = tuple(SteeredSae(s.sae, s.inputs, s.outputs, tuple(edit.times(dose) for edit in s.edits)) for s in saes)
        steering = Steering(dosed)
        steered, control = (measure_effect(lm, one, text, promoted) for one in (steering, Steering(dosed, control=seed)))
        curve.append(Dose(dose, steered, control, repeated(written(steering))))
    return curve
