"""Transcoders: arXiv 2406.11944, and with a skip connection 2501.18823. They read an MLP's input and rebuild its output.

There is no pre-encoder bias, and encoder and decoder start independently. With a skip, decoder and skip start at zero and
the bias at the mean output, so that the first thing that is learnt is the linear map; the decoder is not constrained.
"""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.skip import Skip


class Transcoder(Sae):
    architecture = "transcoder"


class SkipTranscoder(Sae):
    architecture = "skip_transcoder"

    @classmethod
    def initial(cls, config: SaeConfig, shape: Shape, activation: Activation, mean: torch.Tensor) -> "SkipTranscoder":
        sae = super().initial(config, shape, activation, mean)
        sae.skip = Skip(shape.d_in, shape.d_out)
        with torch.no_grad():
            sae.W_dec.zero_()
            sae.b_dec.copy_(mean)
        return sae

    def keeps_unit_decoder(self, config: SaeConfig) -> bool:
        return False
