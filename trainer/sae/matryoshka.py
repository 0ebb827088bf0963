"""Define Matryoshka SAEs (arXiv 2503.17547).

Each of several nested prefixes of the latents reconstructs x alone.

    loss = sum_m ||x - (f_{0:m} W_{0:m} + b_dec)||^2 + ...        m over the prefixes, the last of which is all latents

So the first latents learn general features, and later ones special features.
"""

from itertools import accumulate, pairwise

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.objective import Objective
from scopemill.trainer.sparse.codes import Codes, reconstruction_error


class Matryoshka(Sae):
    """Define an SAE whose training nests prefixes of its latents.

    Its inference is that of any SAE.
    """

    architecture = "matryoshka"


class MatryoshkaObjective(Objective):
    """Sum the reconstruction errors of nested prefixes of the latents."""

    def __init__(self, sae: Sae, config: SaeConfig):
        super().__init__(sae, config)
        ends = sorted({max(1, round(share * config.width)) for share in config.prefixes})
        self.ends = tuple(min(max(end - sae.shard.start, 0), sae.width) for end in ends)  # among the latents of this rank

    def reconstruction_errors(self, codes: Codes, target: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        weights = self.sae.W_dec
        parts = [codes.slice(start, stop).decode(weights, start).to(target.dtype) for start, stop in pairwise((0, *self.ends))]
        return [reconstruction_error(so_far, target) for so_far in accumulate(map(self.sae.shard.all_reduce, parts))]
