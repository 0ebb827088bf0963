"""Count the parameters of a language model and of an SAE from their configurations.

Only a config.json is downloaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import Hook
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.registry import initial_sae


@dataclass(frozen=True)
class ModelSize:
    """Hold a model's numbers of parameters.

    A mixture of experts counts all experts, though a token passes only some.
    """

    layer: int  # of one layer
    head: int  # of the product with the vocabulary
    all: int = 0  # of the whole model
    vocabulary: int = 0  # tokens that it predicts


def model_size(model: ModelConfig) -> ModelSize:
    """Count a model's parameters on torch's meta device, without memory or weights.

    Raises ModelError if that fails.
    """
    try:
        config = AutoConfig.from_pretrained(model.name, revision=model.revision)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"model {model.name!r}: its size cannot be computed from its config.json: {error}") from error
    text = config.get_text_config()
    layers = next(m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == text.num_hidden_layers)
    return ModelSize(
        layer=sum(p.numel() for p in layers.parameters()) // len(layers),
        head=text.vocab_size * text.hidden_size,
        all=sum(p.numel() for p in network.parameters()),
        vocabulary=text.vocab_size,
    )


def shape_of(card: ModelCard, inputs: Sequence[Hook], targets: Sequence[Hook]) -> Shape:
    """Return the shape of an SAE that reads some hooks and rebuilds them, or others."""
    read, rebuilt = (tuple(card.widths[hook.site] for hook in hooks) for hooks in (inputs, targets))
    return Shape(read, rebuilt or read, autoencoder=not targets)


def sae_weights(config: SaeConfig, shape: Shape) -> int:
    """Count the entries of an SAE's matrices.

    Nearly all operations and bytes of an SAE are there.
    """
    with torch.device("meta"):
        sae = initial_sae(config, shape, torch.zeros(shape.d_out))
    return sum(parameter.numel() for parameter in sae.parameters() if parameter.ndim > 1)
