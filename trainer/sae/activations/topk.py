"""TopK: arXiv 2406.04093. The k largest latents of a row are kept; what the rest would add is lost, not penalised.

Latents that have not fired for long are revived by AuxK: the dead ones rebuild what the others left over, and

    loss = ||x - x^||^2 / ||x - mean x||^2 + alpha ||e^ - e||^2 / ||e - mean e||^2        e = x - x^, no gradient through it

with e^ from the k_aux largest pre-activations of dead latents.
"""

from typing import Any

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sparse.codes import Codes, Pre, SparsePre
from scopemill.trainer.sparse.entries import Entries
from scopemill.trainer.sparse.kernels.select import backend_for


class TopK(Activation):
    name = "topk"
    normalized_error = True

    def __init__(self, width: int, k: int):
        super().__init__(width)
        self.k = k

    @classmethod
    def initial(cls, config: SaeConfig, width: int) -> "TopK":
        return cls(width, config.k)

    @classmethod
    def from_config(cls, width: int, config: dict[str, Any]) -> "TopK":
        return cls(width, config["k"])

    def to_config(self) -> dict[str, Any]:
        return {"k": self.k}

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        values, index = pre.topk(min(self.k, self.width), dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, index, self.part.among_largest(values, self.k).relu())

    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        return pre.codes(pre.values.relu() if isinstance(pre, SparsePre) else self(pre.values))

    def select(self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, at_most: int) -> tuple[Entries, torch.Tensor] | None:
        if len(products) * self.k > at_most:
            return None
        backend = backend_for(bias)
        latents, values = backend.largest(products, bias, min(self.k, self.width))
        values = self.part.among_largest(values, self.k)
        return Entries.of_equal_rows(latents, values > 0, self.width, backend), values[values > 0]

    def auxiliary(self, sae, pre, y, miss, dead, config) -> torch.Tensor | float:
        if not config.auxk_coefficient or not (count := self.part.total(int(dead.sum()))):
            return 0.0
        latents = pre.largest(dead, min(config.auxk_latents or sae.shape.d_out // 2, count), self.part)
        scale = (miss - miss.mean(0)).square().sum()
        scale = scale.where(scale > 0, torch.inf)  # nothing is left over: neither a loss nor a gradient
        return config.auxk_coefficient * (sae.mix(latents) + miss).square().sum() / scale
