"""Define transcoders (arXiv 2406.11944): read an MLP's input and reconstruct its output.

A skip may be added (arXiv 2501.18823). There is no pre-encoder bias, and encoder and decoder start independently. With a skip, decoder
and skip start at zero and the bias at the mean output, so training first learns the linear map; the decoder is not constrained.
"""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.skip import Skip


class Transcoder(Sae):
    """Define an SAE that reconstructs another hook than it reads."""

    architecture = "transcoder"


class SkipTranscoder(Sae):
    """Define a transcoder with a full linear map beside its latents."""

    architecture = "skip_transcoder"

    @staticmethod
    def _initial_skip(config: SaeConfig, shape: Shape) -> Skip:
        return Skip(shape.d_in, shape.d_out)

    def _draw_weights(self, config: SaeConfig, generator: torch.Generator, mean: torch.Tensor) -> None:
        super()._draw_weights(config, generator, mean)
        self.W_dec.zero_()
        self.b_dec.copy_(mean)

    def keeps_unit_decoder(self, config: SaeConfig) -> bool:
        return False
