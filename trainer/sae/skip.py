"""A linear map beside the latents: what is linear in the input need not be learnt by sparse latents (arXiv 2501.18823).

Beside a transcoder it is a full matrix. Beside an SAE, which could copy its whole input through one, it has a low rank.
"""

import torch
from torch import nn


class Skip(nn.Module):
    """[..., d_in] to [..., d_out]; zero at the start. ``rank`` None: a full matrix."""

    def __init__(self, d_in: int, d_out: int, rank: int | None = None):
        super().__init__()
        if rank is None:
            self.W_skip = nn.Parameter(torch.zeros(d_out, d_in))
        else:
            self.W_down = nn.Parameter(torch.zeros(rank, d_in))
            self.W_up = nn.Parameter(torch.zeros(d_out, rank))

    def initialize(self, generator: torch.Generator) -> None:
        """A low rank needs one factor that is not zero, for the other to get a gradient."""
        if hasattr(self, "W_down"):
            nn.init.normal_(self.W_down, std=self.W_down.shape[1] ** -0.5, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "W_skip"):
            return nn.functional.linear(x, self.W_skip)
        return nn.functional.linear(nn.functional.linear(x, self.W_down), self.W_up)

    @property
    def matrix(self) -> torch.Tensor:
        """[d_out, d_in]"""
        return self.W_skip if hasattr(self, "W_skip") else self.W_up @ self.W_down

    def of_rank(self, rank: int) -> "Skip":
        """The nearest map of a rank, in two factors. All of the strength is in the second, so that the first is never zero."""
        d_out, d_in = self.matrix.shape
        low = Skip(d_in, d_out, rank)
        left, strength, right = torch.linalg.svd(self.matrix, full_matrices=False)
        kept = min(rank, len(strength))
        with torch.no_grad():
            low.W_up[:, :kept] = left[:, :kept] * strength[:kept]
            low.W_down[:kept] = right[:kept]
        return low
