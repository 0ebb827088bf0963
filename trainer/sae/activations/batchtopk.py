"""Define BatchTopK (arXiv 2412.06410): keep the B k largest latents of a batch.

A batch has B rows, so rows may differ in L0. At inference there is no batch: a latent fires above a threshold, the running mean of the
smallest value kept over about the last twentieth of the training batches. A finished SAE is a JumpReLU with this threshold.
"""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sparse.codes import Codes, DenseCodes, DensePre, Pre, SparsePre
from scopemill.trainer.sparse.entries import Entries, scan

# Batches of the running mean: a share of those so far, and so many at most. Latents grow during training, so a longer mean would lag
# behind, and more than k latents would fire in the finished SAE.
AVERAGED, SHARE_AVERAGED = 1000, 0.05
# Bounds that should lie below the batch's own threshold, as shares of the running mean. The bound with fewer entries comes first.
NEAR = (0.95, 0.8)


class BatchTopK(TopK):
    """Keep the k largest pre-activations per row on average over the batch.

    A threshold for inference is learned.
    """

    name = "batchtopk"
    threshold: torch.Tensor
    batches: torch.Tensor

    def __init__(self, width: int, k: int, shard: LatentShard | None = None):
        super().__init__(width, k, shard)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self._smallest: list[torch.Tensor] = []  # value kept, of each part of the batch since the last update

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre.relu() * (pre > self.threshold)

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        if isinstance(pre, SparsePre):
            self._record_smallest(pre.values.detach())
            return pre.codes(pre.values)
        kept = self._kept(pre.values.detach())
        self._record_smallest(pre.values.detach()[kept])
        return pre.codes(pre.values * kept)

    def preview(self, pre: torch.Tensor, config: SaeConfig) -> DenseCodes:
        return DensePre(pre).codes(pre * self._kept(pre))

    def _kept(self, pre: torch.Tensor) -> torch.Tensor:
        """Return which of the pre-activations [B, F] are the positive ones of the B k largest over all ranks."""
        wanted = len(pre) * self.k
        smallest = self.shard.kth_largest(_largest(pre.flatten(), wanted), wanted)
        return (pre >= smallest) & (pre > 0)

    def select(
        self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, max_entries: int
    ) -> tuple[Entries, torch.Tensor] | None:
        """Scan for entries well above the running threshold.

        If there are enough, the batch's largest are among them.
        """
        wanted = len(products) * self.k
        for near in NEAR if wanted <= max_entries else ():
            candidates = scan(products, bias, (near * self.threshold).expand(self.width), max_entries)
            if not self.shard.all_true(candidates is not None) or candidates is None:
                return None
            entries, values = candidates
            if self.shard.total(len(values)) >= wanted:
                largest = values.topk(min(wanted, len(values)), sorted=False).values
                keep = values >= self.shard.kth_largest(largest, wanted)
                return entries.kept(keep), values[keep]
        return None

    def _record_smallest(self, values: torch.Tensor) -> None:
        """Record the smallest of the values kept, which are all positive."""
        if (smallest := self.shard.smallest(values)) is not None:
            self._smallest.append(smallest)

    @torch.no_grad()
    def after_update(self) -> None:
        """Update the running threshold."""
        for smallest in self._smallest:
            self.batches += 1
            self.threshold += (smallest - self.threshold) / (SHARE_AVERAGED * self.batches).clamp(1, AVERAGED)
        self._smallest.clear()

    @torch.no_grad()
    def folded(self, scale: float, bias: torch.Tensor) -> tuple[torch.Tensor, Activation]:
        activation = JumpReLU(self.width)
        activation.threshold.fill_(scale * self.threshold)
        return scale * bias, activation


def _largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return the k largest of the values [n], or all if there are fewer."""
    # A sample gives a bound that leaves few candidates. Every 61st value: a prime, so that all latents are sampled.
    k, some = min(k, len(values)), values[::61]
    guess = some.topk(min(len(some), k // 40 + 1), sorted=False).values.amin()  # half as many again as should be needed
    candidates = values[values >= guess]
    return (candidates if len(candidates) >= k else values).topk(k, sorted=False).values
