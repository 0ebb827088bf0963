"""Score the output of every latent beside a random direction, and keep the scores."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from scopemill.evaluator.evidence.actor import check_fits
from scopemill.evaluator.evidence.logits import readout
from scopemill.evaluator.evidence.neighbours import decoder_rows
from scopemill.evaluator.evidence.reader import Evidence
from scopemill.evaluator.evidence.schema import OUTPUT_SCORES
from scopemill.evaluator.evidence.store import parquet_file
from scopemill.evaluator.steering.generation import is_row_of
from scopemill.evaluator.steering.scores import Prompt, output_scores, random_pushes
from scopemill.evaluator.steering.steering import SteeredSae
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.describe import describe, load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.trainer.formats import read_finished

PROMPTS = ("In my opinion,", "The next thing is", "I went there and")  # that say little of their own
VERSION, SEED = 1, 0
BLOCK = 256  # latents between two looks at the clock
KEEP_SECONDS = 60.0


def score_latents(
    evidence: Evidence, folder: str, model: ModelConfig, amount: float = 2.0, on_block: Callable[[int, int], None] = lambda done, of: None
) -> dict[int, tuple[float, float]]:
    """Score the output of all latents that fired, and return what `Evidence.output_scores` reads.

    ``amount`` is in the latents' largest activations. The scores so far are kept every minute, and a later call goes on from there.
    Raises InputError if the SAE is not of this model.
    """
    card, finished = describe(model), read_finished(folder)
    check_fits(folder, finished, card)
    settings = {"version": VERSION, "model": model.name, "dtype": model.dtype, "amount": amount, "prompts": PROMPTS, "seed": SEED}
    scores = _kept(evidence, settings)
    table = evidence.latents(["latent", "max"])
    maxima = dict(zip(table.column("latent").to_pylist(), table.column("max").to_pylist(), strict=True))
    left = [latent for latent, most in maxima.items() if most > 0 and latent not in scores]
    if not left:
        return scores
    lm, tokenizer, steered = LanguageModel(model), load_tokenizer(model), SteeredSae.of(finished, folder, [])
    finished.sae.to(lm.device).requires_grad_(False)
    out, decoder = readout(lm, steered.outputs, len(tokenizer)), decoder_rows(finished.sae)
    prompts = _prompts(tokenizer, card.bos, frozenset(card.special))
    total, kept_at = len(scores) + len(left), time.monotonic()
    try:
        for start in range(0, len(left), BLOCK):
            some = left[start : start + BLOCK]
            rows = decoder[some] * torch.tensor([[amount * maxima[latent]] for latent in some]).to(decoder)
            controls = random_pushes(steered, rows, some, SEED)
            own, random = (output_scores(lm, out, steered, of, prompts).tolist() for of in (rows, controls))
            scores |= dict(zip(some, zip(own, random, strict=True), strict=True))
            if time.monotonic() - kept_at > KEEP_SECONDS:
                _keep(evidence, settings, scores)
                kept_at = time.monotonic()
            on_block(len(scores), total)
    finally:
        _keep(evidence, settings, scores)
    return _kept(evidence, settings)


def _prompts(tokenizer: Any, bos: int, special: frozenset[int]) -> Sequence[Prompt]:
    prompts = []
    for text in PROMPTS:
        tokens = torch.tensor([bos, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]])
        prompts.append((tokens, is_row_of(tokens, special)))
    return prompts


def _kept(evidence: Evidence, settings: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """Return the scores that were measured in this way."""
    path = evidence.layout.output_scores
    if not evidence.bucket.exists(path):
        return {}
    metadata = parquet.read_schema(pa.BufferReader(evidence.bucket.read(path))).metadata or {}
    same = metadata.get(b"scopemill") == json.dumps(settings, sort_keys=True).encode()
    return evidence.output_scores() if same else {}


def _keep(evidence: Evidence, settings: dict[str, Any], scores: dict[int, tuple[float, float]]) -> None:
    rows = [dict(zip(OUTPUT_SCORES.names, (latent, *scores[latent]), strict=True)) for latent in sorted(scores)]
    schema = OUTPUT_SCORES.with_metadata({"scopemill": json.dumps(settings, sort_keys=True)})
    evidence.bucket.write(evidence.layout.output_scores, parquet_file(pa.Table.from_pylist(rows, schema=schema)))
