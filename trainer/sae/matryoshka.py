"""Matryoshka: arXiv 2503.17547. Nested parts of the dictionary each have to rebuild x by themselves:

    loss = sum_m ||x - (f_{0:m} W_{0:m} + b_dec)||^2 + ...        m over the prefixes, the last of which is everything

so that the first latents learn what is general and the later ones what is special.
"""

from itertools import accumulate, pairwise

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sparse.codes import Codes, missed


class Matryoshka(Sae):
    architecture = "matryoshka"
    ends: tuple[int, ...] = ()  # of the nested prefixes, among the latents that are here; a finished SAE needs none

    @classmethod
    def initial(cls, config: SaeConfig, shape: Shape, activation: Activation, mean: torch.Tensor) -> "Matryoshka":
        sae = super().initial(config, shape, activation, mean)
        ends = sorted({max(1, round(share * config.width)) for share in config.prefixes})
        sae.ends = tuple(min(max(end - sae.part.first, 0), sae.width) for end in ends)
        return sae

    def misses(self, codes: Codes, target: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rebuilt = [codes.part(start, stop).decode(self.W_dec, start).to(target.dtype) for start, stop in pairwise((0, *self.ends))]
        return [missed(so_far, target) for so_far in accumulate(map(self.part.sum, rebuilt))]
