"""Find the rows of an evaluation's text that the harvest's outlier filter keeps."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from scopemill.evaluator.fidelity.measure import EvaluationText
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import CorpusError
from scopemill.proto.hooks import Hook


def kept_text(lm: LanguageModel, text: EvaluationText, manifest: DatasetManifest) -> EvaluationText:
    """Return the text with the rows alone that the harvest's outlier filter keeps.

    As in the harvest, a token is dropped if its norm is above the limit at any hook. CorpusError if no row is left.
    """
    limits = {hook.name: hook.norm_limit for hook in manifest.hooks if hook.norm_limit is not None}
    kept = torch.cat([_within(lm, tokens, limits) for tokens, _ in text.batches()]) & text.is_row
    if not kept.any():
        raise CorpusError(f"no token of the evaluation's text is within the limits of harvest.outlier_norm in {manifest.dataset}")
    return replace(text, is_row=kept)


def _within(lm: LanguageModel, tokens: torch.Tensor, limits: Mapping[str, float]) -> torch.Tensor:
    """Return a mask [B, T] of the tokens whose norms are within the limits of all hooks."""
    within = torch.ones(tokens.shape, dtype=torch.bool)

    def look(name: str, x: torch.Tensor) -> None:
        within.logical_and_((x.float().norm(dim=-1) <= limits[name]).cpu())

    lm.visit(tokens, [Hook.parse(name) for name in limits], look)
    return within
