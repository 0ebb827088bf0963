"""The model card: what a language model is, read before its weights are loaded."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.bridge import boot, model_errors, quiet
from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import SITES, Hook

FINGERPRINT_SAMPLES = 64  # of 64 KiB, per weight file: reading all of a large model would take minutes


@dataclass(frozen=True)
class ModelCard:
    """What a model is, told from its configuration alone."""

    name: str  # short: the last part of its id or path
    fingerprint: str  # of configuration and weights: two models with the same one are the same
    layers: int
    context_length: int | None  # None: not stated
    widths: Mapping[str, int]  # d per site that the model has
    bos: int
    special: tuple[int, ...]  # BOS, EOS and PAD: their activations are no rows

    def hooks(self, layers: Iterable[int] | str, sites: Iterable[str] | str) -> list[Hook]:
        """The hooks of a sweep, layer by layer; ModelError for a layer or site that the model lacks."""
        layers = range(self.layers) if layers == "all" else layers
        sites = list(self.widths) if sites == "all" else sites
        for layer in layers:
            if layer >= self.layers:
                raise ModelError(f"harvest.layers: {self.name} has no layer {layer}: its layers are 0 to {self.layers - 1}")
        for site in sites:
            if site not in self.widths:
                raise ModelError(f"harvest.sites: {self.name} has no site {site!r}: it has {', '.join(self.widths)}")
        return [Hook(layer, site) for layer in sorted(layers) for site in sites]


def describe(model: ModelConfig) -> ModelCard:
    """Read a model's configuration and tokenizer; its weights are not touched. ModelError if that fails.

    Which sites there are, and how wide, is asked of TransformerLens itself, with a one-layer clone of the architecture.
    """
    with quiet(), model_errors(model):
        config = AutoConfig.from_pretrained(model.name, revision=model.revision)
        tokenizer = AutoTokenizer.from_pretrained(model.name, revision=model.revision)
        text = config.get_text_config()
        clone = _one_layer_clone(model, tokenizer)
    widths = {
        site: clone.cfg.n_heads * clone.cfg.d_head if site == "attn_z" else clone.cfg.d_model
        for site, suffix in SITES.items()
        if f"blocks.0.{suffix}" in clone.hook_dict
    }
    bos, special = _special_tokens(model, tokenizer)
    return ModelCard(
        name=Path(model.name).resolve().name if Path(model.name).is_dir() else model.name.rsplit("/", 1)[-1],
        fingerprint=_fingerprint(model, config),
        layers=text.num_hidden_layers,
        context_length=getattr(text, "max_position_embeddings", None),
        widths=widths,
        bos=bos,
        special=special,
    )


def _one_layer_clone(model: ModelConfig, tokenizer: PreTrainedTokenizerBase):
    """The model's architecture with one layer and without its weights; without memory too, where TransformerLens can."""
    options = {"load_weights": False, "hf_config_overrides": {"num_hidden_layers": 1}, "tokenizer": tokenizer}
    try:
        with torch.device("meta"):
            return boot(model, **options)
    except Exception:  # a fused QKV projection, as GPT-2's, is split at boot, and that takes real tensors
        return boot(model, **options)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    with quiet(), model_errors(model):
        return AutoTokenizer.from_pretrained(model.name, revision=model.revision)


def _special_tokens(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, tuple[int, ...]]:
    """BOS (models like GPT-2 use their one special token for it) and all special ids."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ModelError(f"model {model.name!r}: its tokenizer has neither a BOS nor an EOS token to open a sequence with")
    ids = {bos, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return bos, tuple(sorted(ids))


def _fingerprint(model: ModelConfig, config: Any) -> str:
    """The commit on the hub; for a folder a hash of its configuration and of samples from all over its weight files."""
    folder = Path(model.name)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or model.revision)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as weights:
            for i in range(FINGERPRINT_SAMPLES):
                weights.seek(size * i // FINGERPRINT_SAMPLES)
                digest.update(weights.read(2**16))
    return digest.hexdigest()[:16]
