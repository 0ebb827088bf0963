"""Define Matryoshka SAEs (arXiv 2503.17547).

Each of several nested prefixes of the latents reconstructs x alone.

    loss = sum_m c_m ||x - (f_{0:m} W_{0:m} + b_dec)||^2 + ...        m over the prefixes, the last of which is all latents

So the first latents learn general features, and later ones special features. ``prefix_coefficients`` gives the c_m, which are 1 without
it. With ``detached_prefixes`` the error of a prefix has a gradient only in the latents that smaller prefixes do not hold.
"""

from itertools import accumulate, pairwise, repeat

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
        each = zip(config.prefixes, config.prefix_coefficients or repeat(1.0), strict=False)
        coefficients = {max(1, round(share * config.width)): coefficient for share, coefficient in each}  # ends may coincide
        self.ends = tuple(min(max(end - sae.shard.start, 0), sae.width) for end in coefficients)  # among the latents of this rank
        self.coefficients = tuple(coefficients.values())
        self.detached = config.detached_prefixes

    def reconstruction_errors(self, codes: Codes, target: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        weights = self.sae.W_dec
        parts = [codes.slice(start, stop).decode(weights, start).to(target.dtype) for start, stop in pairwise((0, *self.ends))]
        rebuilt = accumulate(map(self.sae.shard.all_reduce, parts), self._joined)
        errors = [reconstruction_error(so_far, target) for so_far in rebuilt]
        return [(coefficient * squares, error) for coefficient, (squares, error) in zip(self.coefficients, errors, strict=True)]

    def _joined(self, smaller: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction [B, d] of a prefix, from that of the next smaller prefix and the part of the latents between."""
        return (smaller.detach() if self.detached else smaller) + part
