"""Define TopK (arXiv 2406.04093): keep the k largest latents of a row.

The others are dropped, not penalised. AuxK revives latents that have not fired for long: dead latents reconstruct the error of the
others, and

    loss = ||x - x^||^2 / ||x - mean x||^2 + alpha ||e^ - e||^2 / ||e - mean e||^2        e = x - x^, no gradient through it

with e^ from the k_aux largest pre-activations of dead latents.
"""

from typing import Any, Self

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.decoder import Decoder
from scopemill.trainer.sparse.codes import Codes, Pre, SparsePre
from scopemill.trainer.sparse.entries import Entries
from scopemill.trainer.sparse.kernels.select import require_backend


class TopK(Activation):
    """Keep the k largest pre-activations of each row that are positive."""

    name = "topk"
    normalized_error = True

    def __init__(self, width: int, k: int, shard: LatentShard | None = None):
        super().__init__(width, shard)
        self.k = k

    @classmethod
    def initial(cls, config: SaeConfig, shard: LatentShard) -> Self:
        return cls(shard.local_width, config.k, shard)

    @classmethod
    def from_config(cls, width: int, config: dict[str, Any]) -> Self:
        return cls(width, config["k"])

    def to_config(self) -> dict[str, Any]:
        return {"k": self.k}

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        values, index = pre.topk(min(self.k, self.width), dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, index, self.shard.global_top_k(values, self.k).relu())

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        return pre.codes(pre.values.relu() if isinstance(pre, SparsePre) else self(pre.values))

    def select(
        self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, max_entries: int
    ) -> tuple[Entries, torch.Tensor] | None:
        if len(products) * self.k > max_entries:
            return None
        backend = require_backend(bias)
        latents, values = backend.largest(products, bias, min(self.k, self.width))
        values = self.shard.global_top_k(values, self.k)
        return Entries.of_equal_rows(latents, values > 0, self.width, backend), values[values > 0]

    def auxiliary(
        self, decoder: Decoder, pre: Pre, y: torch.Tensor, error: torch.Tensor, dead: torch.Tensor, config: SaeConfig
    ) -> torch.Tensor | float:
        if not config.auxk_coefficient or not (count := self.shard.total(int(dead.sum()))):
            return 0.0
        latents = pre.largest(dead, min(config.auxk_latents or decoder.shape.d_out // 2, count), self.shard)
        scale = (error - error.mean(0)).square().sum()
        scale = scale.where(scale > 0, torch.inf)  # without an error there is neither a loss nor a gradient
        return config.auxk_coefficient * (decoder.decode_no_bias(latents) + error).square().sum() / scale
