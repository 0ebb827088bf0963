"""Generate text under steering, token by token."""

from collections.abc import Iterator

import torch
from pydantic import Field

from scopemill.evaluator.steering.steering import Steering
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.config import Config


class Sampling(Config):
    """Describe how text is sampled."""

    length: int = Field(48, ge=1, description="Tokens to generate.")
    temperature: float = Field(0.7, ge=0, description="Temperature; 0 takes the likeliest token.")
    seed: int = Field(0, ge=0, description="Random seed: the same seed gives the same text.")


def generate(
    lm: LanguageModel, prompt: torch.Tensor, special: frozenset[int], sampling: Sampling, steering: Steering | None = None
) -> Iterator[int]:
    """Yield the tokens that follow a prompt [T], up to a special token."""
    generator = torch.Generator().manual_seed(sampling.seed)
    tokens, cache = prompt[None], None
    for step in range(sampling.length):
        edits = steering.edits(is_row_of(tokens, special), generated=step > 0) if steering else {}
        with torch.inference_mode():
            logits, cache = lm.next_logits(tokens, cache, edits)
        token = sample(logits[0], sampling.temperature, generator)
        if token in special:
            return
        yield token
        tokens = torch.tensor([[token]])


def sample(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    """Return a token drawn from logits [V]."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits.float().cpu() / temperature).softmax(-1), 1, generator=generator))


def is_row_of(tokens: torch.Tensor, special: frozenset[int]) -> torch.Tensor:
    """Return a mask of the tokens' shape: True where the token is not special."""
    return ~torch.isin(tokens.cpu(), torch.tensor(sorted(special), dtype=tokens.dtype))


def repeated(tokens: list[int], n: int = 3) -> float:
    """Return the share of a text's n-grams that occurred before."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
