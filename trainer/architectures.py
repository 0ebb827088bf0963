"""The architectures and activations by name: the one place that knows them all."""

import torch

from scopemill.trainer.activation import Activation
from scopemill.trainer.batchtopk import BatchTopK
from scopemill.trainer.crosscoder import Crosscoder
from scopemill.trainer.crosslayer import CrossLayerTranscoder, PerLayerTranscoder
from scopemill.trainer.gated import Gated
from scopemill.trainer.jumprelu import JumpReLU
from scopemill.trainer.matryoshka import Matryoshka
from scopemill.trainer.parts import Part
from scopemill.trainer.recipe import SaeConfig
from scopemill.trainer.relu import ReLU
from scopemill.trainer.sae import Sae
from scopemill.trainer.topk import TopK
from scopemill.trainer.transcoder import SkipTranscoder, Transcoder
from scopemill.trainer.wiring import Shape

ACTIVATIONS: dict[str, type[Activation]] = {cls.name: cls for cls in (ReLU, Gated, JumpReLU, TopK, BatchTopK)}
ARCHITECTURES: dict[str, type[Sae]] = {
    **dict.fromkeys(("standard", "gated", "jumprelu", "topk", "batchtopk", "skip"), Sae),
    "matryoshka": Matryoshka,
    "transcoder": Transcoder,
    "skip_transcoder": SkipTranscoder,
    "crosscoder": Crosscoder,
    "clt": CrossLayerTranscoder,
    "per_layer_transcoder": PerLayerTranscoder,
}


def all_latents(config: SaeConfig, shape: Shape) -> int:
    """Of all layers together, where an architecture has some in each."""
    layered = issubclass(ARCHITECTURES[config.architecture], CrossLayerTranscoder)
    return config.width * len(shape.inputs) if layered else config.width


def initial_sae(config: SaeConfig, shape: Shape, mean: torch.Tensor, part: Part | None = None) -> Sae:
    """An SAE before its first step, or a part of its latents. ``mean`` [d_out] is that of what it will rebuild, as it will see it."""
    part = part or Part(all_latents(config, shape))
    activation = ACTIVATIONS[config.latents].initial(config, part.here)
    activation.part = part
    return ARCHITECTURES[config.architecture].initial(config, shape, activation, mean)
