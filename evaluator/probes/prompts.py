"""Compute the activations of each prompt's last token."""

from collections.abc import Sequence

import torch

from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.hooks import Hook


def with_bos(prompts: Sequence[list[int]], bos: int, context_length: int) -> list[list[int]]:
    """Put BOS before each prompt's tokens, of which the last ones are kept."""
    return [[bos, *tokens[-(context_length - 1) :]] for tokens in prompts]


def last_rows(lm: LanguageModel, prompts: Sequence[list[int]], hooks: tuple[Hook, ...], sequences_per_forward: int) -> torch.Tensor:
    """Return the raw activations [n, d] at each prompt's last token.

    Those of several hooks stand side by side. Prompts of similar length share a forward pass. Padding follows a prompt's
    end, so causal attention never sees it.
    """
    rows: list[torch.Tensor | None] = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(by_length), sequences_per_forward):
        chosen = by_length[start : start + sequences_per_forward]
        lengths = torch.tensor([len(prompts[i]) for i in chosen])
        padded = torch.zeros(len(chosen), int(lengths.max()), dtype=torch.int64)
        for place, i in enumerate(chosen):
            padded[place, : lengths[place]] = torch.tensor(prompts[i])
        captured = lm.capture(padded, hooks)
        last = [captured[hook.name][torch.arange(len(chosen)), lengths - 1].float().cpu() for hook in hooks]
        for place, i in enumerate(chosen):
            rows[i] = torch.cat([x[place] for x in last])
    return torch.stack([row for row in rows if row is not None])
