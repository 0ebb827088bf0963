"""How large a language model and an SAE are, told from their configurations: nothing is downloaded but a config.json."""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from scopemill.harvester.config import ModelConfig
from scopemill.proto.errors import ModelError
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.registry import initial_sae


@dataclass(frozen=True)
class ModelSize:
    """Parameters. Of a mixture of experts all of them, though a token passes only some."""

    layer: int  # of one layer
    head: int  # of the product with the vocabulary


def model_size(model: ModelConfig) -> ModelSize:
    """Built on torch's meta device: it takes no memory and needs no weights. ModelError if that fails."""
    try:
        config = AutoConfig.from_pretrained(model.name, revision=model.revision)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"model {model.name!r}: its size cannot be told from its configuration: {error}") from error
    text = config.get_text_config()
    layers = next(m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == text.num_hidden_layers)
    return ModelSize(sum(p.numel() for p in layers.parameters()) // len(layers), text.vocab_size * text.hidden_size)


def sae_weights(config: SaeConfig, shape: Shape) -> int:
    """Entries of an SAE's matrices, in which nearly all of its work and its bytes lie."""
    with torch.device("meta"):
        sae = initial_sae(config, shape, torch.zeros(shape.d_out))
    return sum(parameter.numel() for parameter in sae.parameters() if parameter.ndim > 1)
