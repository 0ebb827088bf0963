"""Tell which output tokens a latent promotes and suppresses.

    logits = W_U (gain * w), less their mean over the vocabulary

Where a norm subtracts the mean, that of w goes first. A latent of an ``attn_z`` hook goes through W_O. Hooks whose activations are added to
the residual stream are summed; of several residual streams the last one counts.
Legend of shapes: F latents, d width of the residual stream, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.hooks import Hook

BLOCK = 256  # latents at once; a fixed number, as a product's last bits may depend on it
OUTLIER = 6.0  # deviations of log norms, by their median, beyond which an embedding was never trained
STREAMS = {"resid_pre", "resid_mid", "resid_post"}


@dataclass(frozen=True)
class Readout:
    """Hold how a direction of the residual stream becomes logits."""

    unembedding: torch.Tensor  # W_U, [V, d]
    gain: torch.Tensor  # of the final norm, [d]
    centred: bool  # the final norm subtracts the mean
    projections: dict[str, torch.Tensor]  # W_O [heads * d_head, d] of each attn_z hook
    untrained: frozenset[int]

    @property
    def trained(self) -> torch.Tensor:
        """Return a mask [V] of the tokens that were trained."""
        trained = torch.ones(len(self.unembedding), dtype=torch.bool, device=self.unembedding.device)
        trained[list(self.untrained)] = False
        return trained

    @torch.no_grad()
    def logits(self, direction: torch.Tensor) -> torch.Tensor:
        """Return the logits [n, V] of directions [n, d] of the residual stream.

        They are less their mean over the vocabulary.
        """
        centred = direction - direction.mean(1, keepdim=True) if self.centred else direction
        logits = (centred * self.gain) @ self.unembedding.T
        return logits - logits.mean(1, keepdim=True)


@dataclass(frozen=True)
class Extremes:
    """Hold the tokens of the most extreme logits, [F, k] each."""

    tokens: np.ndarray
    values: np.ndarray


@torch.no_grad()
def readout(lm: LanguageModel, hooks: Sequence[Hook], known_tokens: int) -> Readout:
    """Read final norm and unembedding, and W_O of ``attn_z`` hooks.

    Ids from ``known_tokens`` on have no text, so they are padding that was never trained.
    """
    bridge = lm.bridge
    unembedding = bridge.original_model.get_output_embeddings().weight.detach().float()
    embedding = bridge.original_model.get_input_embeddings().weight.detach().float()
    gain, centred = _gain(bridge.ln_final, unembedding.shape[1], unembedding.device)
    projections = {hook.name: _projection(bridge.blocks[hook.layer]) for hook in hooks if hook.site == "attn_z"}
    return Readout(unembedding, gain, centred, projections, untrained_tokens(embedding, known_tokens))


def _gain(norm: Any, d: int, device: torch.device) -> tuple[torch.Tensor, bool]:
    """Return the gain of a norm, and whether it subtracts the mean, from what the norm does: that works for every family."""
    alternating = torch.ones(1, 1, d, device=device)  # of mean 0 and mean square 1
    alternating[..., 1::2] = -1
    parameter = next(norm.original_component.parameters(), alternating)

    def odd(x: torch.Tensor) -> torch.Tensor:
        x = x.to(parameter.dtype)
        return ((norm.original_component(x) - norm.original_component(-x)) / 2).float()[0, 0]

    return odd(alternating) * alternating[0, 0], bool(odd(torch.ones_like(alternating)).abs().max() < 1e-2)


def _projection(block: Any) -> torch.Tensor:
    weights = block.attn.W_O.detach().float()
    return weights.flatten(0, 1) if weights.ndim == 3 else weights


def untrained_tokens(embedding: torch.Tensor, known_tokens: int) -> frozenset[int]:
    """Return the ids whose embedding's norm is an outlier, and those without text."""
    norms = embedding.norm(dim=1).double()
    logs = norms.clamp(min=1e-12).log()
    median = logs.median()
    deviation = 1.4826 * (logs - median).abs().median() + 1e-6
    outliers = ((logs - median).abs() > OUTLIER * deviation).nonzero()[:, 0].tolist()
    return frozenset(outliers) | frozenset(range(known_tokens, len(embedding)))


def directions(rows: torch.Tensor, outputs: Sequence[Hook], widths: Sequence[int], out: Readout) -> torch.Tensor:
    """Return each latent's direction [F, d] in the residual stream."""
    parts = list(zip(outputs, rows.split(list(widths), dim=1), strict=True))
    added = [part @ out.projections[hook.name] if hook.site == "attn_z" else part for hook, part in parts if hook.site not in STREAMS]
    streams = [part for hook, part in parts if hook.site in STREAMS]
    return torch.stack(added + streams[-1:]).sum(0)


@torch.no_grad()
def extremes(direction: torch.Tensor, out: Readout, k: int) -> tuple[Extremes, Extremes, Extremes, Extremes]:
    """Return promoted and suppressed tokens without those never trained, then both of the whole vocabulary."""
    trained = out.trained
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], [], [], []]
    k = min(k, int(trained.sum()))
    for block in direction.split(BLOCK):
        logits = out.logits(block)
        choices = [logits.where(trained, -torch.inf), logits.where(trained, torch.inf), logits, logits]
        for of_kind, choice, largest in zip(found, choices, (True, False, True, False), strict=True):
            of_kind.append(choice.topk(k, dim=1, largest=largest))
    return tuple(_extremes(of_kind) for of_kind in found)  # type: ignore[return-value]


def _extremes(blocks: list[tuple[torch.Tensor, torch.Tensor]]) -> Extremes:
    values, tokens = (torch.cat(x).cpu().numpy() for x in zip(*blocks, strict=True))
    return Extremes(tokens.astype(np.int32), values.astype(np.float32))
