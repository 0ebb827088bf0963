"""Know every architecture and activation by name."""

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.activations.batchtopk import BatchTopK
from scopemill.trainer.sae.activations.gated import Gated
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.activations.relu import ReLU
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.crosscoder import Crosscoder
from scopemill.trainer.sae.crosslayer import CrossLayerTranscoder, PerLayerTranscoder
from scopemill.trainer.sae.matryoshka import Matryoshka, MatryoshkaObjective
from scopemill.trainer.sae.objective import Objective
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
OBJECTIVES: dict[str, type[Objective]] = {"matryoshka": MatryoshkaObjective}  # the others have the base's


def all_latents(config: SaeConfig, shape: Shape) -> int:
    """Return the number of latents.

    Where an architecture has latents in each layer, it counts all layers together.
    """
    layered = issubclass(ARCHITECTURES[config.architecture], CrossLayerTranscoder)
    return config.width * len(shape.inputs) if layered else config.width


def initial_sae(config: SaeConfig, shape: Shape, mean: torch.Tensor, shard: LatentShard | None = None) -> Sae:
    """Return an SAE before its first step, or one rank's shard.

    ``mean`` [d_out] is the target's mean, in the SAE's units.
    """
    activation = ACTIVATIONS[config.latents].initial(config, shard or LatentShard(all_latents(config, shape)))
    return ARCHITECTURES[config.architecture].initial(config, shape, activation, mean)


def objective_for(sae: Sae, config: SaeConfig) -> Objective:
    """Return the objective that trains an SAE of this configuration."""
    return OBJECTIVES.get(config.architecture, Objective)(sae, config)
