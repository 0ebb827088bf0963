"""BatchTopK: arXiv 2412.06410. Of a batch of B rows the B k largest latents are kept, so rows may differ in L0.

At inference there is no batch: a latent fires above the mean, over training batches, of the smallest value kept. The mean
forgets: it is of about the last thousand batches. A finished SAE is a JumpReLU with this threshold.
"""

import torch

from scopemill.trainer.activation import Activation
from scopemill.trainer.codes import Codes
from scopemill.trainer.config import SaeConfig
from scopemill.trainer.jumprelu import JumpReLU
from scopemill.trainer.topk import TopK

REMEMBERED = 1000  # batches


class BatchTopK(TopK):
    name = "batchtopk"

    def __init__(self, width: int, k: int):
        super().__init__(width, k)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self._smallest: list[torch.Tensor] = []

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre.relu() * (pre > self.threshold)

    def codes(self, pre: torch.Tensor, config: SaeConfig) -> Codes:
        kept = pre.detach().flatten().topk(len(pre) * self.k, sorted=False).values
        smallest = kept.amin().clamp_(min=0)
        self._smallest.append(kept[kept > 0].amin() if (kept > 0).any() else smallest)
        return Codes.of(pre * ((pre >= smallest) & (pre > 0)))

    @torch.no_grad()
    def after_update(self) -> None:
        for smallest in self._smallest:
            self.batches += 1
            self.threshold += (smallest - self.threshold) / self.batches.clamp(max=REMEMBERED)
        self._smallest.clear()

    @torch.no_grad()
    def finished(self, scale: float, bias: torch.Tensor) -> tuple[torch.Tensor, Activation]:
        activation = JumpReLU(self.width)
        activation.threshold.fill_(scale * self.threshold)
        return scale * bias, activation
