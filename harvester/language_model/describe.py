"""Read a model card from a model's configuration and tokenizer, without its weights."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.bridge import as_model_error, boot, quiet_libraries
from scopemill.harvester.language_model.card import ModelCard
from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import SITES

FINGERPRINT_SAMPLES = 64  # per weight file: reading all bytes of a large model would take minutes
SAMPLE_BYTES = 2**16


def describe(model: ModelConfig) -> ModelCard:
    """Read the card of a model. Raises ModelError if that fails.

    The sites and their widths come from TransformerLens itself, from a one-layer clone of the architecture.
    """
    with quiet_libraries(), as_model_error(model):
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


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. Raises ModelError if that fails."""
    with quiet_libraries(), as_model_error(model):
        return AutoTokenizer.from_pretrained(model.name, revision=model.revision)


def vocabulary(model: ModelConfig) -> int:
    """Return the number of token ids that a model embeds.

    Raises ModelError if its configuration cannot be read.
    """
    with quiet_libraries(), as_model_error(model):
        return int(AutoConfig.from_pretrained(model.name, revision=model.revision).get_text_config().vocab_size)


def _one_layer_clone(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Boot the architecture with one layer and no weights, on the meta device if possible."""
    options = {"load_weights": False, "hf_config_overrides": {"num_hidden_layers": 1}, "tokenizer": tokenizer}
    try:
        with torch.device("meta"):
            return boot(model, **options)
    except Exception:  # a fused QKV projection, such as GPT-2's, is split at boot: that needs real tensors
        return boot(model, **options)


def _special_tokens(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, tuple[int, ...]]:
    """Return the BOS id and all special ids.

    Models such as GPT-2 have one special token, EOS, which serves as BOS.
    """
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ModelError(
            f"model {model.name!r}: its tokenizer has neither a BOS nor an EOS token, and every sequence must open with one: "
            "set bos_token in its tokenizer_config.json"
        )
    ids = {bos, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return bos, tuple(sorted(ids))


def _fingerprint(model: ModelConfig, config: Any) -> str:
    """Return the hub's commit, or a hash of a local folder.

    The hash covers the configuration and samples of the weight files.
    """
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
                digest.update(weights.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
