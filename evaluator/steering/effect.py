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
def measure_effects(lm: LanguageModel, steerings: Sequence[Steering], text: EvaluationText, promoted: Sequence[int]) -> list[Effect]:
    """Measure configurations on held-out text, all beside one clean pass. Sums are float64."""
    sums, count = torch.zeros(len(steerings), 4, dtype=torch.float64), 0
    chosen = torch.as_tensor(promoted, dtype=torch.long, device=lm.device)
    for tokens, is_row in text.batches():
        counted, targets = is_row.to(lm.device)[:, 1:], tokens[:, 1:].to(lm.device).long()

        def predictions(steering: Steering | None, tokens=tokens, is_row=is_row, counted=counted) -> torch.Tensor:
            logits = lm.logits(tokens, steering.edits(is_row) if steering else {})[0]
            return logits[:, :-1][counted].float().log_softmax(-1)

        clean = predictions(None)
        for steering, of_steering in zip(steerings, sums, strict=True):
            of_steering += _sums(clean, predictions(steering), targets[counted], chosen).cpu()
        count += len(clean)
    return [Effect(*means) for means in (sums / count).tolist()]


def _sums(clean: torch.Tensor, steered: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return an effect's figures [4] summed over tokens, of log-probabilities [n, V] with their targets [n]."""
    kl = (clean.exp() * (clean - steered)).sum(-1).double().sum()
    losses = [-x.gather(-1, targets[:, None]).double().sum() for x in (clean, steered)]
    masses = [x[:, chosen].exp().sum(-1).double().sum() for x in (steered, clean)]
    return torch.stack([kl, losses[1] - losses[0], *masses])


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
    dosed = [[SteeredSae(s.sae, s.inputs, s.outputs, tuple(edit.times(dose) for edit in s.edits)) for s in saes] for dose in doses]
    steerings = [Steering(tuple(of_dose), control=control) for of_dose in dosed for control in (None, seed)]
    effects = measure_effects(lm, steerings, text, promoted_tokens(out, saes))
    repeats = [repeated(written(steering)) for steering in steerings[::2]]
    return [Dose(*figures) for figures in zip(doses, effects[::2], effects[1::2], repeats, strict=True)]
