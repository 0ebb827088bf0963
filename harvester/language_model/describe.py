"""Read a model card from a model's configuration and tokenizer, without its weights."""

import contextlib
import hashlib
from collections.abc import Mapping
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
_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")  # properties of some configurations, which to_dict leaves out
_CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length", "max_sequence_length")


def describe(model: ModelConfig) -> ModelCard:
    """Read the card of a model. Raises ModelError if that fails.

    The sites and their widths come from TransformerLens itself, from a clone of the architecture that has as many layers as it takes to
    see one of each kind.
    """
    with quiet_libraries(), as_model_error(model):
        config = AutoConfig.from_pretrained(model.name, revision=model.revision)
        tokenizer = AutoTokenizer.from_pretrained(model.name, revision=model.revision)
        text = config.get_text_config()
        kinds = layer_kinds(text)
        first = {kind: layer for layer, kind in reversed(list(enumerate(kinds)))}  # where each kind is seen
        clone = _clone(model, tokenizer, max(first.values()) + 1)
        given = _given(clone, sorted(first.values()))
        at = {kind: _sites_at(clone, layer, given) for kind, layer in first.items()}
        embedded = clone.original_model.get_input_embeddings().weight.shape[0]
    widths = {site: width for site in SITES if (width := next((at[kind][site] for kind in kinds if site in at[kind]), None))}
    # A site has one width, so layers where it has another one (Gemma 4's attn_z at layers of global attention) do not have it.
    lacking = {site: tuple(n for n, kind in enumerate(kinds) if at[kind].get(site) != width) for site, width in widths.items()}
    if not widths:
        raise ModelError(f"model {model.name!r}: TransformerLens has no hook for any of the sites {', '.join(SITES)} in this architecture")
    bos, special = _special_tokens(model, tokenizer)
    _check_vocabulary(model, tokenizer, special, embedded)
    return ModelCard(
        name=Path(model.name).resolve().name if Path(model.name).is_dir() else model.name.rsplit("/", 1)[-1],
        fingerprint=_fingerprint(model, config),
        layers=text.num_hidden_layers,
        context_length=_context_length(text),
        widths=widths,
        bos=bos,
        special=special,
        lacking={site: layers for site, layers in lacking.items() if layers},
    )


def layer_kinds(config: Any) -> list[tuple[str, ...]]:
    """Return what the configuration's lists of layers say of each layer.

    Hybrid models have layers with attention and layers without, so layers of several kinds may have several sets of sites.
    """
    layers = config.num_hidden_layers
    stated = config.to_dict()
    lists = [stated[name] if name in stated else getattr(config, name, None) for name in sorted({*stated, *_KINDS})]
    of_layers = [values for values in lists if isinstance(values, list | tuple) and len(values) == layers]
    return [tuple(str(values[layer]) for values in of_layers) for layer in range(layers)]


def _given(clone: Any, layers: list[int]) -> dict[str, Any]:
    """Return what hooks of these layers give for some tokens, by name; nothing where the clone cannot run without its weights."""
    found: dict[str, Any] = {}
    names = [name for layer in layers for suffix in SITES.values() if (name := f"blocks.{layer}.{suffix}") in clone.hook_dict]
    tokens = torch.zeros((1, 4), dtype=torch.int64, device=clone.original_model.get_input_embeddings().weight.device)
    with contextlib.suppress(Exception), torch.inference_mode():  # some layers look at values, which a clone without weights lacks
        clone.run_with_hooks(tokens, fwd_hooks=[(n, lambda x, hook: found.__setitem__(hook.name, x)) for n in names], return_type=None)
    return found


def _sites_at(clone: Any, layer: int, given: Mapping[str, Any]) -> dict[str, int]:
    """Return the width of each site that a layer has; a hook that gives no tensor is none."""
    widths = {}
    for site, suffix in SITES.items():
        x = given.get(name := f"blocks.{layer}.{suffix}")
        if isinstance(x, torch.Tensor) and x.ndim > 2:
            widths[site] = x.flatten(2).shape[-1]
        elif x is None and name in clone.hook_dict:
            widths[site] = _attention_width(clone, layer) if site == "attn_z" else clone.cfg.d_model
    return widths


def _attention_width(clone: Any, layer: int) -> int:
    """Return the width of what attention's output projection takes: with latent attention it is not heads times d_head."""
    projection = getattr(getattr(clone.blocks[layer], "attn", None), "o", None)
    original = getattr(projection, "original_component", projection)
    if isinstance(original, torch.nn.Linear):
        return original.in_features
    if original is not None and hasattr(original, "nf"):  # transformers' Conv1D, whose weight is [in, out]
        return int(original.weight.shape[0])
    return int(clone.cfg.n_heads * clone.cfg.d_head)


def _context_length(config: Any) -> int | None:
    """Return the longest sequence that a configuration allows; None if it states none."""
    stated = [getattr(config, name, None) for name in _CONTEXT_LENGTHS]
    return next((int(length) for length in stated if isinstance(length, int) and length > 0), None)


def _check_vocabulary(model: ModelConfig, tokenizer: PreTrainedTokenizerBase, special: tuple[int, ...], embedded: int) -> None:
    """Raise ModelError if the tokenizer has an id for which the model has no embedding: a text may hold it."""
    ids = tokenizer.get_vocab()
    beyond = sorted((id, token) for token, id in ids.items() if id >= embedded) or [(id, "") for id in special if id >= embedded]
    if beyond:
        id, token = beyond[0]
        raise ModelError(
            f"model {model.name!r}: its tokenizer has {len(beyond)} tokens beyond the model's {embedded} embeddings, such as {token!r} "
            f"with id {id}: use the tokenizer that the model was trained with"
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


def _clone(model: ModelConfig, tokenizer: PreTrainedTokenizerBase, layers: int) -> Any:
    """Boot the architecture with so many layers and no weights, on the meta device if possible."""
    options = {"load_weights": False, "hf_config_overrides": {"num_hidden_layers": layers}, "tokenizer": tokenizer}
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
