"""The architectures and activations by name: the one place that knows them all."""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.parallel.shards import Part
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.activations.batchtopk import BatchTopK
from scopemill.trainer.sae.activations.gated import Gated
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.activations.relu import ReLU
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.crosscoder import Crosscoder
from scopemill.trainer.sae.crosslayer import CrossLayerTranscoder, PerLayerTranscoder
from scopemill.trainer.sae.matryoshka import Matryoshka
from scopemill.trainer.sae.transcoder import SkipTranscoder, Transcoder

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
