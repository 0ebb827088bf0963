"""Finished SAEs as folders in SAELens' format, and back: ``cfg.json`` and ``sae_weights.safetensors``.

SAELens keeps ``W_enc`` as [d_in, d_sae], here it is [F, d_in]: a transpose loses no bit. BatchTopK, and Matryoshka over it,
are JumpReLUs by now, with the threshold that they learnt. What SAELens has no word for (crosscoders, cross-layer
transcoders, skip SAEs, TopK transcoders) is kept in the same kind of folder under our own word.
"""

import json
from typing import Any

import safetensors.torch
import torch

from scopemill.proto.bucket import Bucket
from scopemill.proto.errors import InputError, MissingObject, SaeFormatError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.trainer.architectures import ACTIVATIONS
from scopemill.trainer.crosscoder import Crosscoder
from scopemill.trainer.crosslayer import CrossLayerTranscoder, PerLayerTranscoder
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.sae import Sae, check_tensors
from scopemill.trainer.skip import Skip
from scopemill.trainer.transcoder import SkipTranscoder, Transcoder
from scopemill.trainer.wiring import Shape

SAE_LENS_VERSION = "6.54.0"  # whose folder format this is
# SAELens' word for a kind of body with an activation.
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
# Ours, with the activation in a field of its own.
OWN_WORDS: dict[str, type[Sae]] = {
    "scopemill.skip": Sae,
    "scopemill.transcoder": Transcoder,
    "scopemill.skip_transcoder": SkipTranscoder,
    "scopemill.crosscoder": Crosscoder,
    "scopemill.clt": CrossLayerTranscoder,
    "scopemill.per_layer_transcoder": PerLayerTranscoder,
}
_CONFIG, _WEIGHTS = (path.lstrip("/") for path in (SaeLayout("").config, SaeLayout("").weights))


def write_saelens(bucket: Bucket, root: str, finished: FinishedSae) -> None:
    """Write the folder ``root``. ``cfg.json`` comes last: the folder is finished because it is there."""
    if finished.sae.centred:
        raise ValueError("fold the SAE before it is exported")
    place = SaeLayout(root)
    tensors = {_their_name(name): p.detach().cpu() for name, p in finished.sae.named_parameters()}
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"].T
    bucket.write(place.weights.lstrip("/"), safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}))
    bucket.write(place.config.lstrip("/"), json.dumps(_to_config(finished), indent=1).encode())


def _their_name(name: str) -> str:
    """``threshold`` for ``activation.threshold``; a list's members keep their numbers."""
    return name.removeprefix("activation.").removeprefix("skip.")


def _to_config(finished: FinishedSae) -> dict[str, Any]:
    sae = finished.sae
    config = {
        "architecture": _word(sae),
        "d_in": sae.shape.d_in,
        "d_sae": sae.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "layer_norm" if sae.layer_norm else "none",
        "reshape_activations": "hook_z" if [_site(name) for name in finished.inputs] == ["attn_z"] else "none",
    }
    if sae.activation.name == "topk":
        config |= {"k": sae.activation.k, "rescale_acts_by_decoder_norm": False}
    if not sae.shape.autoencoder:
        config["d_out"] = sae.shape.d_out
    if config["architecture"] in OWN_WORDS:
        config |= {"activation": sae.activation.name, "inputs": list(sae.shape.inputs), "outputs": list(sae.shape.outputs)}
    metadata = {
        "sae_lens_version": SAE_LENS_VERSION,
        "sae_lens_training_version": None,
        "model_name": finished.model,
        "hook_name": finished.inputs[0] if len(finished.inputs) == 1 else list(finished.inputs),
        "hook_head_index": None,
        "prepend_bos": True,
        "seqpos_slice": [None],
        "model_from_pretrained_kwargs": {},
        "exclude_special_tokens": True,
    }
    if not sae.shape.autoencoder:
        metadata["hook_name_out"] = finished.outputs[0] if len(finished.outputs) == 1 else list(finished.outputs)
    return config | {"metadata": metadata | finished.metadata}


def _word(sae: Sae) -> str:
    kind, activation = type(sae), sae.activation.name
    if kind.__name__ == "Matryoshka" or kind is Sae:
        if sae.skip:
            return "scopemill.skip"
        kind = Sae
    for word, known in WORDS.items():
        if known == (kind, activation):
            return word
    return next(word for word, cls in OWN_WORDS.items() if cls is kind and word != "scopemill.skip")


def _site(name: str) -> str | None:
    try:
        return Hook.parse(name).site
    except InputError:
        return None


def read_saelens(folder: str) -> FinishedSae:
    """The finished SAE in a folder (any fsspec URL), for raw activations; float32, on the CPU, no gradients.

    SaeFormatError if the folder is not one, is of an architecture that is not known, or does not fit its config.
    """
    bucket = Bucket(folder)
    if not bucket.exists(_CONFIG):
        raise SaeFormatError(f"{folder} is not a finished SAE: it has no {_CONFIG}")
    place, config = bucket.place(_WEIGHTS), _read_config(bucket)
    try:
        tensors = safetensors.torch.load(bucket.read(_WEIGHTS))
    except MissingObject as error:
        raise SaeFormatError(f"{folder} is not a finished SAE: {error}") from error
    except safetensors.SafetensorError as error:
        raise SaeFormatError(f"{place} cannot be read: {error}") from error
    sae = _empty(bucket.place(_CONFIG), config)
    if "W_enc" in tensors and tensors["W_enc"].ndim == 2:
        tensors["W_enc"] = tensors["W_enc"].T
    wanted = {_their_name(name): p.shape for name, p in sae.named_parameters()}
    check_tensors(place, tensors, wanted)
    check_values(place, tensors)
    sae = sae.to_empty(device="cpu")
    sae.load_state_dict({name: tensors[_their_name(name)].float() for name, _ in sae.named_parameters()})
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else {}
    inputs = _names(metadata.get("hook_name"))
    return FinishedSae(
        sae.requires_grad_(False), inputs, _names(metadata.get("hook_name_out")) or inputs, metadata.get("model_name"),
        {k: v for k, v in metadata.items() if k not in ("hook_name", "hook_name_out", "model_name")},
    )  # fmt: skip


def check_values(place: str, tensors: dict[str, torch.Tensor]) -> None:
    """SaeFormatError for a value that is no finite number, or a threshold below zero."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise SaeFormatError(f"{place}: tensor {name} holds a value that is not a finite number")
    if "threshold" in tensors and (tensors["threshold"] < 0).any():
        raise SaeFormatError(f"{place}: tensor threshold holds a negative value; a JumpReLU's thresholds are at least 0")


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _read_config(bucket: Bucket) -> dict[str, Any]:
    """A ``cfg.json`` of an architecture that is known, whose widths are counts."""
    place = bucket.place(_CONFIG)
    try:
        config = json.loads(bucket.read(_CONFIG))
    except ValueError as error:
        raise SaeFormatError(f"{place} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SaeFormatError(f"{place} is not a JSON object")
    name = config.get("architecture")
    if not isinstance(name, str) or name not in WORDS | OWN_WORDS:
        raise SaeFormatError(f"{place}: architecture {name!r} is not known: there are {', '.join(WORDS | OWN_WORDS)}")
    if config.get("normalize_activations", "none") not in ("none", "layer_norm"):
        raise SaeFormatError(f"{place}: normalize_activations {config['normalize_activations']!r} is not read here; fold it first")
    if config.get("rescale_acts_by_decoder_norm"):
        raise SaeFormatError(f"{place}: rescale_acts_by_decoder_norm is not read here; fold the decoder's norms first")
    counts = ["d_in", "d_sae"] + ["d_out"] * ("transcoder" in name) + ["k"] * (_activation_name(config) == "topk")
    for field in counts:
        if type(config.get(field)) is not int or config[field] < 1:
            raise SaeFormatError(f"{place}: {field} is {config.get(field)!r}, not a number of at least 1")
    if "k" in counts and config["k"] > config["d_sae"]:
        raise SaeFormatError(f"{place}: k is {config['k']}, more than the {config['d_sae']} latents")
    return config


def _activation_name(config: dict[str, Any]) -> str | None:
    word = config["architecture"]
    return WORDS[word][1] if word in WORDS else config.get("activation")


def _empty(place: str, config: dict[str, Any]) -> Sae:
    """The SAE that a config describes, its weights without memory."""
    word, width = config["architecture"], config["d_sae"]
    kind = WORDS[word][0] if word in WORDS else OWN_WORDS[word]
    autoencoder = "transcoder" not in word and word != "scopemill.clt"
    try:
        inputs = tuple(config.get("inputs") or [config["d_in"]])
        shape = Shape(inputs, tuple(config.get("outputs") or [config.get("d_out") or config["d_in"]]), autoencoder)
        with torch.device("meta"):
            activation = ACTIVATIONS[_activation_name(config)].from_config(width, config)
            skip = Skip(shape.d_in, shape.d_out) if "skip" in word else None
            centred = bool(config.get("apply_b_dec_to_input")) and autoencoder
            return kind(shape, width, activation, centred, skip, config.get("normalize_activations") == "layer_norm")
    except (KeyError, TypeError, ValueError) as error:
        raise SaeFormatError(f"{place} does not describe a {word}: {error!r}") from error
