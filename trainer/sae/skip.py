"""Learn a linear map beside the latents.

So latents need not learn linear structure (arXiv 2501.18823). Beside a transcoder it is a full matrix. Beside an SAE, which could copy
its whole input through one, it has a low rank.
"""

import torch
from torch import nn


class Skip(nn.Module):
    """Map [..., d_in] linearly to [..., d_out], starting at zero. ``rank`` None: a full matrix."""

    def __init__(self, d_in: int, d_out: int, rank: int | None = None):
        super().__init__()
        if rank is None:
            self.W_skip = nn.Parameter(torch.zeros(d_out, d_in))
        else:
            self.W_down = nn.Parameter(torch.zeros(rank, d_in))
            self.W_up = nn.Parameter(torch.zeros(d_out, rank))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the first factor of a low rank.

        One factor must differ from zero for the other to get a gradient.
        """
        if hasattr(self, "W_down"):
            nn.init.normal_(self.W_down, std=self.W_down.shape[1] ** -0.5, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map's output [..., d_out]."""
        if hasattr(self, "W_skip"):
            return nn.functional.linear(x, self.W_skip)
        return nn.functional.linear(nn.functional.linear(x, self.W_down), self.W_up)

    @property
    def matrix(self) -> torch.Tensor:
        """Return the map as a matrix [d_out, d_in]."""
        return self.W_skip if hasattr(self, "W_skip") else self.W_up @ self.W_down

    def of_rank(self, rank: int) -> "Skip":
        """Return the nearest map of this rank, in two factors.

        The second holds all singular values, so the first is never zero.
        """
        d_out, d_in = self.matrix.shape
        low = Skip(d_in, d_out, rank)
        left, strength, right = torch.linalg.svd(self.matrix, full_matrices=False)
        kept = min(rank, len(strength))
        with torch.no_grad():
            low.W_up[:, :kept] = left[:, :kept] * strength[:kept]
            low.W_down[:kept] = right[:kept]
        return low
