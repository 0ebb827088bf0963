"""Read and write SAELens' format: a folder of ``cfg.json`` and ``sae_weights.safetensors``.

SAELens stores ``W_enc`` as [d_in, d_sae]; an `Sae` holds [F, d_in]. A trained BatchTopK, also under Matryoshka, is a JumpReLU with
the learnt threshold. Architectures without a word in SAELens (crosscoders, cross-layer transcoders, skip SAEs, TopK transcoders)
use the same files under a word of our own. Folders of SAELens before version 6 are read too.
"""

import json
from typing import Any

import safetensors.torch
import torch

from scopemill.proto.errors import InputError, SaeFormatError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats.config_fields import SAELENS_TRAINING, check_known, check_one_of, read_flag
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.formats.tensors import check_count, filled, laid_out, read_config, read_safetensors
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.crosscoder import Crosscoder
from scopemill.trainer.sae.crosslayer import CrossLayerTranscoder, PerLayerTranscoder
from scopemill.trainer.sae.matryoshka import Matryoshka
from scopemill.trainer.sae.registry import ACTIVATIONS
from scopemill.trainer.sae.skip import Skip
from scopemill.trainer.sae.transcoder import SkipTranscoder, Transcoder

SAE_LENS_VERSION = "6.54.0"  # whose folder format this is
# SAELens' words, each for a class with an activation.
WORDS: dict[str, tuple[type[Sae], str]] = {
    "standard": (Sae, "relu"),
    "gated": (Sae, "gated"),
    "jumprelu": (Sae, "jumprelu"),
    "topk": (Sae, "topk"),
    "transcoder": (Transcoder, "relu"),
    "jumprelu_transcoder": (Transcoder, "jumprelu"),
    "skip_transcoder": (SkipTranscoder, "relu"),
    "jumprelu_skip_transcoder": (SkipTranscoder, "jumprelu"),
}
# Our own words; the activation has a field of its own.
OWN_WORDS: dict[str, type[Sae]] = {
    "scopemill.skip": Sae,
    "scopemill.transcoder": Transcoder,
    "scopemill.skip_transcoder": SkipTranscoder,
    "scopemill.crosscoder": Crosscoder,
    "scopemill.clt": CrossLayerTranscoder,
    "scopemill.per_layer_transcoder": PerLayerTranscoder,
}
FINISHED_ACTIVATIONS = ("relu", "gated", "jumprelu", "topk")
CONFIG, WEIGHTS, PROVENANCE = (path.lstrip("/") for path in (SaeLayout("").config, SaeLayout("").weights, SaeLayout("").provenance))
_FLAGS = {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False, "finetuning_scaling_factor": False}
_OWN = ("activation", "inputs", "outputs")  # of our own words
_READ = {"architecture", "d_in", "d_sae", "d_out", "k", "normalize_activations", "reshape_activations", "metadata", *_OWN, *_FLAGS}
_HOOKS = ("hook_name", "hook_name_out", "model_name")  # fields of the metadata; other fields are kept unchanged
# The metadata of an older, flat cfg.json.
_LEGACY_METADATA = (
    *_HOOKS, "hook_head_index", "context_size", "prepend_bos", "seqpos_slice", "dataset_path", "model_from_pretrained_kwargs",
    "exclude_special_tokens", "neuronpedia_id",
)  # fmt: skip


def saelens_files(place: str, finished: FinishedSae) -> dict[str, bytes]:
    """Return the folder's files, with ``cfg.json`` last.

    The presence of ``cfg.json`` makes the folder a finished SAE.
    """
    tensors = laid_out(finished.sae, _names(finished.sae))
    return {WEIGHTS: safetensors.torch.save(tensors), CONFIG: json.dumps(_to_config(finished), indent=1).encode()}


def to_saelens(sae: Sae) -> Any:
    """Return an SAE as an SAE of the package sae_lens.

    Device and dtype stay the same. InputError if sae_lens is not installed, or has no word for the architecture.
    """
    try:
        import sae_lens  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("to_saelens needs the package sae-lens: run `pip install sae-lens`.") from error
    word = word_of(sae)
    if word not in WORDS:
        raise InputError(f"SAELens has no architecture for a {word.removeprefix('scopemill.')}; it has {', '.join(WORDS)}.")
    config = _to_config(FinishedSae.of(sae)) | {"device": str(sae.device)}
    theirs = sae_lens.SAE.from_dict(config)
    tensors = laid_out(sae, _names(sae))
    theirs.process_state_dict_for_loading(tensors)
    theirs.load_state_dict(tensors)
    return theirs.to(device=sae.device, dtype=sae.dtype)


def read_saelens(folder: str) -> FinishedSae:
    """Return the SAE of a SAELens folder.

    Raises SaeFormatError if its files are damaged, unknown, or do not fit each other.
    """
    bucket = Bucket(folder)
    place, config = bucket.place(CONFIG), _read_config(bucket)
    tensors = read_safetensors(bucket, WEIGHTS, PROVENANCE)
    sae = _empty(place, config)
    factors = tensors.pop("scaling_factor", None) if config["architecture"] in WORDS else None  # a finetuned SAE's
    if factors is None and config.get("finetuning_scaling_factor"):
        raise SaeFormatError(f"{bucket.place(WEIGHTS)} lacks the tensor scaling_factor, and finetuning_scaling_factor is true.")
    sae = filled(bucket.place(WEIGHTS), sae, tensors, _names(sae))
    if factors is not None:
        fold_factors(bucket.place(WEIGHTS), sae, factors)
    if sae.activation.name == "topk" and config.get("rescale_acts_by_decoder_norm"):
        _fold_norms(sae)
    metadata = config["metadata"]
    inputs = _hooks(place, metadata, "hook_name", sae.shape.inputs)
    outputs = inputs if sae.shape.autoencoder else _hooks(place, metadata, "hook_name_out", sae.shape.outputs)
    if config.get("reshape_activations") == "hook_z" and any(_site(name) != "attn_z" for name in inputs):
        raise SaeFormatError(f"{place}: reshape_activations is 'hook_z', and the SAE reads {', '.join(inputs)}, whose rows have no heads.")
    if not outputs and not sae.shape.autoencoder:
        raise SaeFormatError(f"{place}: a {config['architecture']} needs metadata.hook_name_out, the hook that it reconstructs.")
    return FinishedSae(sae, inputs, outputs, metadata.get("model_name"), {k: v for k, v in metadata.items() if k not in _HOOKS})


def fold_factors(place: str, sae: Sae, factors: torch.Tensor) -> None:
    """Multiply factors [F], which apply when latents are decoded, into the decoder's rows."""
    if list(factors.shape) != [sae.width] or not factors.isfinite().all():
        raise SaeFormatError(f"{place}: tensor scaling_factor has to hold {sae.width} finite numbers, one for each latent.")
    sae.W_dec.mul_(factors.float()[:, None])


def _fold_norms(sae: Sae) -> None:
    """Fold ``rescale_acts_by_decoder_norm``: scale each latent by its decoder row's norm, and the row to norm 1."""
    norms = sae.W_dec.norm(dim=1)
    sae.W_enc.mul_(norms[:, None])
    assert sae.b_enc is not None, "a TopK has an encoder bias"
    sae.b_enc.mul_(norms)
    sae.W_dec.div_(norms.clamp(min=1e-8)[:, None])


def _names(sae: Sae) -> dict[str, str]:
    """Return the table of names: ``threshold`` for ``activation.threshold``; members of a list keep their numbers."""
    names = {name.removeprefix("activation.").removeprefix("skip."): name for name, _ in sae.named_parameters()}
    if "W_enc" in names:
        names["W_enc"] = "W_enc.T"
    return names


def _to_config(finished: FinishedSae) -> dict[str, Any]:
    sae = finished.sae
    config = {
        "architecture": word_of(sae),
        "d_in": sae.shape.d_in,
        "d_sae": sae.width,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": "layer_norm" if sae.layer_norm else "none",
        "reshape_activations": "hook_z" if [_site(name) for name in finished.inputs] == ["attn_z"] else "none",
    }
    if sae.activation.name == "topk":
        config |= {"k": sae.activation.k, "rescale_acts_by_decoder_norm": False}
    if not sae.shape.autoencoder:
        config["d_out"] = sae.shape.d_out
    if config["architecture"] in OWN_WORDS:
        config |= {"activation": sae.activation.name, "inputs": list(sae.shape.inputs), "outputs": list(sae.shape.outputs)}
    metadata: dict[str, Any] = {
        "sae_lens_version": SAE_LENS_VERSION,
        "sae_lens_training_version": None,
        "model_name": finished.model,
        "hook_name": _one_or_many(finished.inputs),
        "hook_head_index": None,
        "prepend_bos": True,
        "seqpos_slice": [None],
        "model_from_pretrained_kwargs": {},
        "exclude_special_tokens": True,
    }
    if not sae.shape.autoencoder:
        metadata["hook_name_out"] = _one_or_many(finished.outputs)
    return config | {"metadata": metadata | finished.metadata}


def _one_or_many(hooks: tuple[str, ...]) -> str | list[str] | None:
    return hooks[0] if len(hooks) == 1 else list(hooks) or None


def word_of(sae: Sae) -> str:
    """Return SAELens' word for an SAE's architecture, or our own where SAELens has none."""
    kind, activation = Sae if isinstance(sae, Matryoshka) else type(sae), sae.activation.name
    if kind is Sae and sae.skip:
        return "scopemill.skip"
    for word, known in WORDS.items():
        if known == (kind, activation):
            return word
    return next(word for word, cls in OWN_WORDS.items() if cls is kind)


def _site(name: str) -> str | None:
    try:
        return Hook.parse(name).site
    except InputError:
        return None


def _hooks(place: str, metadata: dict[str, Any], field: str, widths: tuple[int, ...]) -> tuple[str, ...]:
    value = metadata.get(field)
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) not in (0, len(widths)):
        raise SaeFormatError(f"{place}: metadata.{field} is {value!r}; it has to name {len(widths)} hooks.")
    return tuple(names)


def _read_config(bucket: Bucket) -> dict[str, Any]:
    """Return the fields of ``cfg.json``; SaeFormatError for an unknown architecture or a wrong width."""
    place, config = bucket.place(CONFIG), read_config(bucket, CONFIG)
    if isinstance(config.get("metadata"), dict):
        check_known(place, config, _READ, SAELENS_TRAINING)
    else:
        config = _from_legacy(place, config)
        check_known(place, config, _READ | set(_LEGACY_METADATA), SAELENS_TRAINING)
    check_one_of(place, config, "reshape_activations", ("none", "hook_z", None))
    for field, default in _FLAGS.items():
        read_flag(place, config, field, default)
    name = config.get("architecture")
    if not isinstance(name, str) or name not in WORDS | OWN_WORDS:
        raise SaeFormatError(f"{place}: architecture {name!r} is not known; known are {', '.join(WORDS | OWN_WORDS)}.")
    if _activation_name(config) not in FINISHED_ACTIVATIONS:
        raise SaeFormatError(f"{place}: activation {config.get('activation')!r} is not known; known are {', '.join(FINISHED_ACTIVATIONS)}.")
    if config.get("normalize_activations", "none") not in ("none", "layer_norm"):
        raise SaeFormatError(
            f"{place}: normalize_activations {config['normalize_activations']!r} is not supported; fold it into the weights first."
        )
    if name in WORDS:
        check_known(place, {field: config[field] for field in _OWN if field in config}, (), ())
    if config.get("rescale_acts_by_decoder_norm") and _activation_name(config) != "topk":
        raise SaeFormatError(f"{place}: rescale_acts_by_decoder_norm is true, which only a topk has, and the architecture is {name}.")
    if "transcoder" in name and config.get("apply_b_dec_to_input"):
        raise SaeFormatError(f"{place}: apply_b_dec_to_input is true, and the decoder's bias of a {name} is of its output, not its input.")
    for field in ["d_in", "d_sae"] + ["d_out"] * ("transcoder" in name):
        check_count(place, config, field)
    if _activation_name(config) == "topk":
        check_count(place, config, "k", most=config["d_sae"])
    return config


def _from_legacy(place: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return today's fields for a flat ``cfg.json``, as SAELens wrote it before version 6."""
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
    flat: dict[str, Any] = {"architecture": "standard"}
    flat |= {renamed.get(field, field): value for field, value in config.items()}
    options = flat.pop("activation_fn_kwargs", None) or {}
    check_one_of(place, flat, "activation_fn", ("relu", "topk", None))
    activation = flat.pop("activation_fn", None)
    if activation == "topk" and flat["architecture"] in ("standard", "topk") and isinstance(options, dict) and "k" in options:
        flat |= {"architecture": "topk", "k": options["k"]}
        options = {name: value for name, value in options.items() if name != "k"}
    elif activation == "topk":
        raise SaeFormatError(
            f"{place}: activation_fn is 'topk' in a {flat['architecture']} SAE, with activation_fn_kwargs {options!r}: that is not known."
        )
    if options:
        raise SaeFormatError(f"{place}: activation_fn_kwargs {options!r} are not known for {activation or 'relu'}.")
    if not flat.get("normalize_activations"):
        flat["normalize_activations"] = "none"
    return flat | {"metadata": {field: flat[field] for field in _LEGACY_METADATA if field in flat}}


def _activation_name(config: dict[str, Any]) -> str | None:
    word = config["architecture"]
    return WORDS[word][1] if word in WORDS else config.get("activation")


def _empty(place: str, config: dict[str, Any]) -> Sae:
    """Return the SAE that a config describes, with weights on torch's meta device."""
    word, width = config["architecture"], config["d_sae"]
    kind = WORDS[word][0] if word in WORDS else OWN_WORDS[word]
    autoencoder = "transcoder" not in word and word != "scopemill.clt"
    try:
        inputs = tuple(config.get("inputs") or [config["d_in"]])
        shape = Shape(inputs, tuple(config.get("outputs") or [config.get("d_out") or config["d_in"]]), autoencoder)
        with torch.device("meta"):
            activation = ACTIVATIONS[str(_activation_name(config))].from_config(width, config)
            skip = Skip(shape.d_in, shape.d_out) if "skip" in word else None
            centred = config.get("apply_b_dec_to_input", True) and autoencoder
            return kind(shape, width, activation, centred, skip, config.get("normalize_activations") == "layer_norm")
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")[:200]  # torch adds a C++ stack
        raise SaeFormatError(f"{place} does not describe a {word}: {type(error).__name__} {reason}") from error
