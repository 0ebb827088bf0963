"""Activations whose true features are known: sums of a few of many fixed directions."""

import torch


class SparseWorld:
    """Rows [rows, d] with E||x||^2 = 1; batch k is a pure function of k. ``halves``: each direction lies in one half of the columns."""

    def __init__(self, d: int = 64, directions: int = 128, active: float = 5.0, halves: bool = False):
        generator = torch.Generator().manual_seed(11)
        self.truth, self.images = torch.randn(2, directions, d, generator=generator)
        if halves:
            self.truth[: directions // 2, d // 2 :] = 0
            self.truth[directions // 2 :, : d // 2] = 0
        for rows in (self.truth, self.images):
            rows /= rows.norm(dim=1, keepdim=True)
        self._share = active / directions
        sample = self._raw(-1, 20_000)
        self._scale = sample.square().sum(1).mean().sqrt()

    def batch(self, k: int, rows: int) -> torch.Tensor:
        return self._raw(k, rows) / self._scale

    def computed(self, k: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows x, and y: the images of those features that are strong in them, which no linear map gives."""
        strengths = self._strengths(k, rows)
        return strengths @ self.truth / self._scale, (strengths > 1).float() @ self.images / self._scale

    def _raw(self, k: int, rows: int) -> torch.Tensor:
        return self._strengths(k, rows) @ self.truth

    def _strengths(self, k: int, rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 + k)
        on = torch.rand(rows, len(self.truth), generator=generator) < self._share
        return on * (0.5 + torch.rand(rows, len(self.truth), generator=generator))

    def recovered(self, rows: torch.Tensor, images: bool = False) -> float:
        """Mean over the true directions, or their images, of the cosine to the nearest of the decoder's rows [F, d]."""
        return (
            ((self.images if images else self.truth) @ (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)).T)
            .max(dim=1)
            .values.mean()
            .item()
        )
