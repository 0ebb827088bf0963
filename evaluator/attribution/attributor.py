"""Answer which latents a language model's answer rests on."""

from dataclasses import dataclass

import torch
from pydantic import Field

from scopemill.evaluator.attribution.attribute import Attribution, attribute, logit_difference
from scopemill.evaluator.evidence.actor import check_fits
from scopemill.evaluator.steering.generation import is_row_of
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.describe import describe, load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.config import Config
from scopemill.proto.errors import InputError
from scopemill.trainer.formats import read_finished


class AttributionRequest(Config):
    """Ask which latents of an SAE a logit difference rests on."""

    sae: str = Field(min_length=1, description="Folder of a finished SAE in any readable format: a path or fsspec URL.")
    prompt: str = Field(min_length=1, description="The text before the answer.")
    answer: str = Field(min_length=1, description="The answer, with its space: its first token's logit counts.")
    against: str | None = Field(None, description="Another answer, whose logit is subtracted. Default: the mean of all logits.")
    steps: int = Field(1, ge=1, description="Points of the integrated gradient; 1: the gradient times the activation.")
    most: int = Field(20, ge=1, description="Latents, and latents at one position, to list.")
    ablated: int = Field(10, ge=0, description="Of these the first that are ablated exactly.")


@dataclass(frozen=True)
class Answer:
    """Hold an attribution with the prompt's tokens and the two answers' first tokens as text."""

    tokens: list[str]
    answer: str
    against: str | None
    attribution: Attribution


class Attributor:
    """Hold a language model, and attribute its answers to latents."""

    def __init__(self, model: ModelConfig):
        self._card, self._tokenizer = describe(model), load_tokenizer(model)
        self._lm = LanguageModel(model)

    def attribute(self, request: AttributionRequest) -> Answer:
        """Return which latents a logit difference rests on.

        Raises InputError for an SAE that does not fit or cannot act, and for answers that begin with the same token.
        """
        finished = read_finished(request.sae)
        check_fits(request.sae, finished, self._card)
        finished.sae.to(self._lm.device).requires_grad_(False)
        ids = self._tokenizer(request.prompt, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = torch.tensor([self._card.bos, *ids])
        is_row = is_row_of(tokens, frozenset(self._card.special))
        if not bool(is_row.any()):
            raise InputError(f"the prompt {request.prompt!r} has no token that an SAE reads: write some words")
        answer = self._first(request.answer, "--answer")
        against = None if request.against is None else self._first(request.against, "--against")
        if answer == against:
            raise InputError(
                f"--answer {request.answer!r} and --against {request.against!r} begin with the same token "
                f"{self._text(answer)!r}, so their logits do not differ: put what they share into the prompt"
            )
        metric = logit_difference(answer, against)
        found = attribute(self._lm, finished, request.sae, tokens, is_row, metric, request.steps, request.most, request.ablated)
        named = None if against is None else self._text(against)
        return Answer([self._text(int(token)) for token in tokens], self._text(answer), named, found)

    def _first(self, text: str, option: str) -> int:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise InputError(f"{option} {text!r} has no token: write a word, with the space before it")
        return int(ids[0])

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))
