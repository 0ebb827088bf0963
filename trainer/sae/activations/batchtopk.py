"""BatchTopK: arXiv 2412.06410. Of a batch of B rows the B k largest latents are kept, so rows may differ in L0.

At inference there is no batch: a latent fires above the mean, over training batches, of the smallest value kept. The mean
forgets: it is of about the last thousand batches. A finished SAE is a JumpReLU with this threshold.
"""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sparse.codes import Codes, Pre, SparsePre
from scopemill.trainer.sparse.entries import Entries, scan

REMEMBERED = 1000  # batches
NEAR = (0.95, 0.8)  # the threshold times this is tried as a bound below the batch's own, the one that leaves fewer entries first


class BatchTopK(TopK):
    name = "batchtopk"

    def __init__(self, width: int, k: int):
        super().__init__(width, k)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self._smallest: list[torch.Tensor] = []

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre.relu() * (pre > self.threshold)

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        if isinstance(pre, SparsePre):
            self._kept(pre.values.detach())
            return pre.codes(pre.values)
        wanted = pre.rows * self.k
        smallest = self.part.smallest_of_largest(_largest(pre.values.detach().flatten(), wanted), wanted)
        kept = (pre.values >= smallest) & (pre.values > 0)
        self._kept(pre.values.detach()[kept])
        return pre.codes(pre.values * kept)

    def select(self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, at_most: int) -> tuple[Entries, torch.Tensor] | None:
        """All that lies well above the usual threshold; if that is enough, the largest of it are those of the batch."""
        wanted = len(products) * self.k
        for near in NEAR if wanted <= at_most else ():
            candidates = scan(products, bias, (near * self.threshold).expand(self.width), at_most)
            if not self.part.everywhere(candidates is not None):
                return None
            entries, values = candidates
            if self.part.total(len(values)) >= wanted:
                largest = values.topk(min(wanted, len(values)), sorted=False).values
                keep = values >= self.part.smallest_of_largest(largest, wanted)
                return entries.kept(keep), values[keep]
        return None

    def _kept(self, values: torch.Tensor) -> None:
        """Take note of the smallest of the values kept, all of which are positive."""
        if (smallest := self.part.least(values)) is not None:
            self._smallest.append(smallest)

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


def _largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of the values [n], or all. A sample says about where they begin, and few are left to choose from.

    Every 61st: a prime, so that it takes from all latents.
    """
    k, some = min(k, len(values)), values[::61]
    guess = some.topk(min(len(some), k // 40 + 1), sorted=False).values.amin()  # half as many again as should be needed
    candidates = values[values >= guess]
    return (candidates if len(candidates) >= k else values).topk(k, sorted=False).values
