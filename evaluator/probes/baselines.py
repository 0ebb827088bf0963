"""Make latents of random dictionaries: the baselines that a trained SAE's probes have to beat.

Frozen random dictionaries match trained SAEs on several scores (arXiv 2602.14111), so a score says little without theirs. Both
baselines have the SAE's width, a fixed seed, and k latents active per row, k the SAE's own L0 on the same rows.
"""

from collections.abc import Callable

import torch

from scopemill.evaluator.probes.scores import RANDOM_DECODER, RANDOM_ENCODER

SEED = 0
PURSUIT_STEPS = 4


def random_dictionary(width: int, d: int) -> torch.Tensor:
    """Return unit rows [width, d] in random directions, the same for the same shape."""
    rows = torch.randn(width, d, generator=torch.Generator().manual_seed(SEED))
    return rows / rows.norm(dim=1, keepdim=True)


def encode_random(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> torch.Tensor:
    """Return a frozen random encoder's latents [n, F]: each row's k largest positive products."""
    return largest(x @ dictionary.T, k)


def encode_onto_random(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> torch.Tensor:
    """Return latents [n, F] with which a frozen random decoder rebuilds x well.

    Normalized iterative hard thresholding (Blumensath and Davies 2010) takes the place of a trained encoder: gradient steps on
    the error, each of the length that is best on the active latents, and after each the k largest positive latents are kept.
    """
    latents = largest(x @ dictionary.T, k)
    for _ in range(PURSUIT_STEPS):
        gradient = (x - latents @ dictionary) @ dictionary.T
        active = torch.where(latents > 0, gradient, 0)
        moved = (active @ dictionary).square().sum(1, keepdim=True)
        step = torch.where(moved > 0, active.square().sum(1, keepdim=True) / moved.clamp(min=1e-30), 0)
        latents = largest(latents + step * gradient, k)
    return latents


def largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Keep each row's k largest positive values [n, F], and zero the others."""
    top = values.topk(min(k, values.shape[1]), dim=1)
    return torch.zeros_like(values).scatter_(1, top.indices, top.values.clamp(min=0))


Encoder = Callable[[torch.Tensor], torch.Tensor]


def baselines(width: int, mean: torch.Tensor, k: int) -> dict[str, Encoder]:
    """Return the encoders of both baselines by name; each takes raw rows [n, d].

    ``mean`` (d,) is subtracted from the rows, as an SAE's decoder bias would be.
    """
    dictionary = random_dictionary(width, len(mean)).to(mean)
    return {
        RANDOM_DECODER: lambda x: encode_onto_random(x - mean, dictionary, k),
        RANDOM_ENCODER: lambda x: encode_random(x - mean, dictionary, k),
    }
