"""A batch's latents during training: what an activation gives, and what a decoder and a penalty take.

Legend of shapes: B rows, F latents, d width of what is rebuilt.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Codes:
    values: torch.Tensor  # [B, F], not negative; carries the gradient
    frequency: torch.Tensor  # [F]: in which share of the rows each latent fires; carries JumpReLU's pseudo-gradient

    @staticmethod
    def of(values: torch.Tensor) -> "Codes":
        """Of latents whose firing has no gradient."""
        return Codes(values, (values.detach() > 0).sum(0).to(values.dtype) / len(values))

    @property
    def l0(self) -> torch.Tensor:
        """Mean number of latents that fire."""
        return self.frequency.sum()

    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum of the rows [F, d], each as often as its latent says: [B, d]."""
        return self.values @ rows

    def times(self, factors: torch.Tensor) -> torch.Tensor:
        """The values, each times the factor [F] of its latent, in no particular layout: for sums over all of them."""
        return self.values * factors

    def part(self, start: int, stop: int) -> "Codes":
        """Those of the latents from ``start`` up to ``stop``."""
        return replace(self, values=self.values[..., start:stop], frequency=self.frequency[start:stop])
