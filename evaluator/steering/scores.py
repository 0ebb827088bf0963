"""Score latents by their output.

The score says whether pushing a latent makes the model say what the latent promotes.

Legend of shapes: n latents, d_out width of the SAE's outputs side by side, T positions, V vocabulary.
"""

from collections.abc import Sequence

import torch

from scopemill.evaluator.evidence.logits import Readout, directions
from scopemill.evaluator.evidence.neighbours import decoder_rows
from scopemill.evaluator.steering.steering import SteeredSae
from scopemill.harvester.language_model.model import Edit, LanguageModel
from scopemill.proto.hooks import Hook

PROMOTED = 10  # output tokens that count as promoted by a latent
MOST_AT_ONCE = 64  # latents of a forward pass
MOST_LOGITS = 2**25  # of a forward pass: 128 MiB

Prompt = tuple[torch.Tensor, torch.Tensor]  # tokens [T], and a mask [T] of those that are pushed


def pushes(steered: SteeredSae, latents: Sequence[int], amounts: Sequence[float]) -> torch.Tensor:
    """Return what raising each latent by its amount adds to the outputs, [n, d_out]."""
    rows = decoder_rows(steered.sae)[list(latents)]
    return rows * torch.as_tensor(amounts).to(rows)[:, None]


def random_pushes(steered: SteeredSae, rows: torch.Tensor, latents: Sequence[int], seed: int) -> torch.Tensor:
    """Return random directions [n, d_out] as long as the given rows.

    Lengths are equal at each output. The direction depends on seed and latent alone.
    """
    generators = (torch.Generator().manual_seed((seed << 32) + latent) for latent in latents)
    random = torch.stack([torch.randn(rows.shape[1], generator=generator) for generator in generators]).to(rows)
    widths = list(steered.sae.shape.outputs)
    parts = zip(random.split(widths, dim=1), rows.split(widths, dim=1), strict=True)
    return torch.cat([torch.nn.functional.normalize(part, dim=1) * row.norm(dim=1, keepdim=True) for part, row in parts], dim=1)


def direct_logits(out: Readout, steered: SteeredSae, rows: torch.Tensor) -> torch.Tensor:
    """Return the logits [n, V] that rows at the SAE's outputs write directly.

    Rows are [n, d_out].
    """
    return out.logits(directions(rows.to(out.gain), steered.outputs, steered.sae.shape.outputs, out))


def most_promoted(out: Readout, logits: torch.Tensor) -> torch.Tensor:
    """Return the `PROMOTED` trained tokens of the largest logits [..., V]."""
    return logits.where(out.trained, -torch.inf).topk(PROMOTED, dim=-1).indices


@torch.inference_mode()
def output_scores(lm: LanguageModel, out: Readout, steered: SteeredSae, rows: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Return the output score [n] of pushes [n, d_out], the mean over prompts.

    Each push is added at the prompt. Its score is p (1 - rank / V) of the likeliest of its promoted tokens, as arXiv 2505.20063 has it.
    Every push is a sequence of a batch, so a score costs one row of a forward pass for each prompt.
    """
    longest = max(len(tokens) for tokens, _ in prompts)
    pushed = _pushed_once if _can_spread(lm, steered, rows[:2], prompts[0]) else _pushed
    at_once = max(1, min(MOST_AT_ONCE, MOST_LOGITS // (longest * len(out.unembedding))))
    found = []
    for some in rows.split(at_once):
        promoted = most_promoted(out, direct_logits(out, steered, some))
        found.append(torch.stack([_score(pushed(lm, steered, some, prompt), promoted) for prompt in prompts]).mean(0))
    return torch.cat(found).cpu()


def _pushed(lm: LanguageModel, steered: SteeredSae, rows: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    """Return the next token's logits [n, V] under each push."""
    tokens, is_row = prompt
    return lm.logits(tokens.expand(len(rows), -1), _pushing(steered, rows, is_row))[0][:, -1].float()


def _pushed_once(lm: LanguageModel, steered: SteeredSae, rows: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    """Return the same; the layers before the push run once for all of them, and only the last token is unembedded."""
    tokens, is_row = prompt
    return lm.spread_logits(tokens, _pushing(steered, rows, is_row)).float()


def _can_spread(lm: LanguageModel, steered: SteeredSae, rows: torch.Tensor, prompt: Prompt) -> bool:
    """Return whether this model takes more sequences after the push than before it, by trying."""
    try:
        once = _pushed_once(lm, steered, rows, prompt)
    except Exception:  # an architecture's own: shapes, or an option that it does not know
        return False
    each = _pushed(lm, steered, rows, prompt)
    return once.shape == each.shape and torch.allclose(once, each, rtol=1e-3, atol=1e-3 * float(each.abs().max()))


def _pushing(steered: SteeredSae, rows: torch.Tensor, is_row: torch.Tensor) -> dict[Hook, Edit]:
    parts = rows.split(steered.sae.shape.outputs, dim=1)
    return {hook: _add_at(is_row, part) for hook, part in zip(steered.outputs, parts, strict=True)}


def _score(logits: torch.Tensor, promoted: torch.Tensor) -> torch.Tensor:
    probability = logits.softmax(-1).gather(1, promoted)
    best, which = probability.max(1)
    token = promoted.gather(1, which[:, None])
    rank = (logits > logits.gather(1, token)).sum(1)
    return best * (1 - rank / logits.shape[1])


def _add_at(is_row: torch.Tensor, rows: torch.Tensor) -> Edit:
    """Return an edit that adds row b [d] to every pushed position of sequence b."""

    def edit(x: torch.Tensor) -> torch.Tensor:
        return x + is_row.to(x.device)[..., None] * rows[:, None].to(x)

    return edit
