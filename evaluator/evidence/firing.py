"""Find the latents of an SAE that fire on a text, through the live model."""

from typing import Any

import numpy as np
import torch

from scopemill.evaluator.evidence.actor import check_fits
from scopemill.evaluator.evidence.reader import evidence_of
from scopemill.harvester.config import named_model
from scopemill.harvester.language_model.describe import describe, load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.errors import InputError, StorageError
from scopemill.proto.hooks import Hook
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import read_finished


def firing_on(folder: str, text: str, model: str | None = None) -> list[dict[str, Any]]:
    """Return the latents that fire on a text, those of the largest activation first.

    ``model`` is by default the one that the SAE's evidence was made with. Raises InputError for an empty text, or without a model.
    """
    sae = read_finished(folder)
    config = named_model(model or _model_of(folder))
    card = describe(config)
    check_fits(folder, sae, card)
    tokenizer = load_tokenizer(config)
    ids = [card.bos, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    tokens = torch.tensor([ids])
    kept = np.flatnonzero(~np.isin(tokens.numpy(), card.special))
    if not len(kept):
        raise InputError(f"the text {text!r} has no token: write some words")
    lm = LanguageModel(config)
    captured = lm.capture(tokens, [Hook.parse(name) for name in sae.inputs])
    x = torch.cat([captured[name][0].float() for name in sae.inputs], dim=1)[torch.from_numpy(kept).to(lm.device)]
    latents = sae.sae.to(x.device).encode(x).cpu()
    largest, at = latents.max(0)
    order = sorted((largest > 0).nonzero()[:, 0].tolist(), key=lambda latent: (-float(largest[latent]), latent))
    return [
        {
            "latent": latent,
            "max": float(largest[latent]),
            "token": tokenizer.decode([ids[kept[int(at[latent])]]]),
            "position": int(kept[int(at[latent])]) - 1,
            "tokens": int((latents[:, latent] > 0).sum()),
        }
        for latent in order
    ]


def _model_of(folder: str) -> str:
    try:
        return evidence_of(Bucket(folder), "").record.model_place
    except StorageError as error:
        raise InputError(f"{folder} has no evidence that names its language model: give --model") from error
