"""Answer steering requests with one language model: texts and effects side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator

from scopemill.evaluator.evidence.logits import Readout, readout
from scopemill.evaluator.fidelity.measure import EvaluationText
from scopemill.evaluator.steering.edits import Edit, latents_of
from scopemill.evaluator.steering.effect import (
    Dose,
    Effect,
    clean_loss,
    dose_curve,
    measure_effects,
    promoted_tokens,
)
from scopemill.evaluator.steering.generation import Sampling, generate, is_row_of
from scopemill.evaluator.steering.maxima import Maximum, maxima
from scopemill.evaluator.steering.scores import Prompt, output_scores, pushes
from scopemill.evaluator.steering.steering import SteeredSae, Steering
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.describe import describe, load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.text.packing import Document, pack_sequences
from scopemill.proto.config import Config
from scopemill.proto.errors import InputError
from scopemill.trainer.formats import read_finished
from scopemill.trainer.formats.finished import FinishedSae

UNSTEERED, CONTROL = "unsteered", "random direction"
OWN_TEXTS, OWN_LENGTH = 4, 64  # texts of the model itself to measure on, where no other text is given
NEUTRAL_PROMPT = "In my opinion,"


class SteeringRequest(Config):
    """Ask for texts under configurations of edits, beside unsteered and randomly pushed text."""

    prompt: str = Field(min_length=1, description="The text to continue.")
    configurations: dict[str, tuple[Edit, ...]] = Field(description="The edits of each configuration, by a name of your own.")
    sampling: Sampling = Field(Sampling.model_validate({}), description="How texts are sampled.")
    samples: int = Field(1, ge=1, le=64, description="Texts per configuration; each has the next seed.")
    text: str | None = Field(
        None,
        description="Text to measure effects on, and the largest activations of latents without evidence. Default: what the model itself "
        "writes after the prompt.",
    )
    doses: bool = Field(False, description="Also measure each configuration at several doses, up to where text collapses.")

    @model_validator(mode="after")
    def _own_names(self):
        taken = {UNSTEERED} | {f"{name}: {CONTROL}" for name in self.configurations}
        for name, edits in self.configurations.items():
            if not edits:
                raise ValueError(f"configurations.{name} has no edit")
            if name in taken:
                raise ValueError(f"configurations: {name!r} is the name of another column; choose another")
        return self


@dataclass(frozen=True)
class Steered:
    """Hold what one configuration did."""

    texts: list[str]
    effect: Effect | None = None  # None: unsteered
    scores: dict[int, float] | None = None  # output score of each added latent
    doses: list[Dose] | None = None
    collapse: float | None = None  # the first dose at which text collapses; None: at none of those tried
    maxima: list[Maximum] | None = None  # what amounts were counted in


class Steerer:
    """Hold a language model and the SAEs that were asked for."""

    def __init__(self, model: ModelConfig):
        self._model, self._card = model, describe(model)
        self._tokenizer = load_tokenizer(model)
        self._lm = LanguageModel(model)
        self._special = frozenset(self._card.special)
        self._saes: dict[str, FinishedSae] = {}

    def steer(
        self, request: SteeringRequest, on_token: Callable[[str, int, str], None] = lambda name, sample, text: None
    ) -> dict[str, Steered]:
        """Return what each configuration did, the unsteered text first.

        ``on_token`` gets each new piece of text, with its configuration and sample. InputError for edits that cannot act.
        """
        prompt = self._prompt(request.prompt)
        text = self._text(request.text) if request.text else self._own_text(prompt)
        configured = {name: self._configured(edits, text) for name, edits in request.configurations.items()}

        def texts(name: str, steering: Steering | None) -> list[str]:
            return [self._written(name, i, prompt, request.sampling, steering, on_token) for i in range(request.samples)]

        results = {UNSTEERED: Steered(texts(UNSTEERED, None))}
        for name, (saes, used) in configured.items():
            columns = {name: Steering(saes), f"{name}: {CONTROL}": Steering(saes, control=request.sampling.seed)}
            effects = measure_effects(self._lm, list(columns.values()), text, promoted_tokens(self._out(saes), saes))
            for (column, steering), effect in zip(columns.items(), effects, strict=True):
                extra = self._measured(saes, text, prompt, request) | {"maxima": used} if column == name else {}
                results[column] = Steered(texts(column, steering), effect, **extra)
        return results

    def _measured(
        self, saes: tuple[SteeredSae, ...], text: EvaluationText, prompt: torch.Tensor, request: SteeringRequest
    ) -> dict[str, Any]:
        """Return output scores, and the dose curve if it was asked for."""
        scores: dict[int, float] = {}
        tokens, out = self._prompt(NEUTRAL_PROMPT), self._out(saes)
        neutral: Prompt = tokens, is_row_of(tokens, self._special)
        for steered in saes:
            added = {edit.latent: edit.amount for edit in steered.edits if edit.op == "add" and edit.amount is not None}
            if added:
                found = output_scores(self._lm, out, steered, pushes(steered, list(added), list(added.values())), [neutral])
                scores |= dict(zip(added, found.tolist(), strict=True))
        if not request.doses:
            return {"scores": scores}

        def written(steering: Steering) -> list[int]:
            return list(generate(self._lm, prompt, self._special, request.sampling, steering))

        curve = dose_curve(self._lm, out, saes, text, written, seed=request.sampling.seed)
        loss = clean_loss(self._lm, text)
        return {"scores": scores, "doses": curve, "collapse": next((one.dose for one in curve if one.collapsed(loss)), None)}

    def _out(self, saes: Sequence[SteeredSae]) -> Readout:
        """Return how the outputs of SAEs become logits."""
        return readout(self._lm, [hook for steered in saes for hook in steered.outputs], len(self._tokenizer))

    def _written(self, name: str, sample: int, prompt: torch.Tensor, sampling: Sampling, steering: Steering | None, on_token) -> str:
        tokens: list[int] = []
        own = sampling.model_copy(update={"seed": sampling.seed + sample})
        shown = ""
        for token in generate(self._lm, prompt, self._special, own, steering):
            tokens.append(token)
            text = str(self._tokenizer.decode(tokens))
            if not text.endswith("\ufffd"):  # half a character: its other bytes come with the next token
                on_token(name, sample, text[len(shown) :])
                shown = text
        return str(self._tokenizer.decode(tokens))

    def _configured(self, edits: Sequence[Edit], text: EvaluationText) -> tuple[tuple[SteeredSae, ...], list[Maximum]]:
        """Return the SAEs of edits in their order, with all amounts in raw activations, and the maxima they were counted in."""
        steered, used = [], []
        for place in dict.fromkeys(edit.sae for edit in edits):
            finished = self._sae(place)
            own = [edit for edit in edits if edit.sae == place]
            wanted = [latent for latent in latents_of(own, place) if any(e.latent == latent and e.in_maxima for e in own)]
            inputs = SteeredSae.of(finished, place, [edit.scaled(1.0) for edit in own]).inputs  # can they act? before anything is measured
            found = maxima(self._lm, finished.sae, inputs, place, wanted, text)
            most = {one.latent: one.value for one in found}
            steered.append(SteeredSae.of(finished, place, [edit.scaled(most.get(edit.latent, 0.0)) for edit in own]))
            used += found
        return tuple(steered), used

    def _sae(self, place: str) -> FinishedSae:
        if place not in self._saes:
            finished = read_finished(place)
            self._check_model(finished, place)
            finished.sae.to(self._lm.device).requires_grad_(False)
            self._saes[place] = finished
        return self._saes[place]

    def _check_model(self, finished: FinishedSae, place: str) -> None:
        """InputError unless the SAE's hooks are in the model and as wide as the SAE."""
        shape = finished.sae.shape
        steered = SteeredSae.of(finished, place, [])
        for hooks, widths in ((steered.inputs, shape.inputs), (steered.outputs, shape.outputs)):
            for hook, width in zip(hooks, widths, strict=True):
                there = self._card.widths.get(hook.site) if hook.layer < self._card.layers else None
                if there != width:
                    found = f"there {hook.site} is {there} wide" if there else f"it has no {hook.name}"
                    raise InputError(
                        f"{place} reads or writes {hook.name} with {width} columns, and {self._card.name} does not fit: {found}; "
                        "name the model that the SAE was trained on with --model"
                    )

    def _prompt(self, text: str) -> torch.Tensor:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor([self._card.bos, *ids])

    def _own_text(self, prompt: torch.Tensor) -> EvaluationText:
        """Return what the model itself writes after the prompt, as sequences of one length."""
        rows = []
        for seed in range(OWN_TEXTS):
            sampling = Sampling(length=OWN_LENGTH, temperature=1.0, seed=seed)
            rows.append(prompt.tolist() + list(generate(self._lm, prompt, self._special, sampling)))
        length = max(map(len, rows))
        tokens = torch.tensor([row + [self._card.bos] * (length - len(row)) for row in rows])  # special tokens are not counted
        return EvaluationText(tokens, is_row_of(tokens, self._special), OWN_TEXTS)

    def _text(self, text: str) -> EvaluationText:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        length = min(len(ids) + 1, 256)
        packed = list(pack_sequences([Document(np.asarray(ids, dtype=np.int64))], length, self._card.bos))
        if length < 3 or not packed:
            raise InputError("the text to measure on is shorter than two tokens: give a longer one")
        tokens = torch.cat([torch.from_numpy(sequence.tokens) for sequence in packed])
        return EvaluationText(tokens, is_row_of(tokens, self._special), 8)
