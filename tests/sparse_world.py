"""Activations whose true features are known: sums of a few of many fixed directions."""

import torch


class SparseWorld:
    """Rows [rows, d] with E||x||^2 = 1; batch k is a pure function of k."""

    def __init__(self, d: int = 64, directions: int = 128, active: float = 5.0):
        generator = torch.Generator().manual_seed(11)
        self.truth = torch.randn(directions, d, generator=generator)
        self.truth /= self.truth.norm(dim=1, keepdim=True)
        self._share = active / directions
        sample = self._raw(-1, 20_000)
        self._scale = sample.square().sum(1).mean().sqrt()

    def batch(self, k: int, rows: int) -> torch.Tensor:
        return self._raw(k, rows) / self._scale

    def _raw(self, k: int, rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 + k)
        on = torch.rand(rows, len(self.truth), generator=generator) < self._share
        strength = 0.5 + torch.rand(rows, len(self.truth), generator=generator)
        return (on * strength) @ self.truth

    def recovered(self, rows: torch.Tensor) -> float:
        """Mean over the true directions of the cosine to the nearest of the decoder's rows [F, d]."""
        return (self.truth @ (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).T).max(dim=1).values.mean().item()
