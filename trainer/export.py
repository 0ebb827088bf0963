"""Finished SAEs as folders in SAELens' format, and back.

``cfg.json`` and ``sae_weights.safetensors``; the SAE takes raw activations: the scale and the pre-encoder bias are
folded. SAELens keeps ``W_enc`` as [d_in, d_sae], here it is [F, d]: a transpose loses no bit.
"""

import importlib.metadata
import json
from typing import Any

import safetensors.torch

from scopemill.proto.bucket import Bucket
from scopemill.proto.errors import MissingObject, SaeFormatError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.trainer.architectures import ARCHITECTURES
from scopemill.trainer.sae import Sae, check_tensors

SAE_LENS_VERSION = "6.54.0"  # whose folder format this is


def write_sae(bucket: Bucket, layout: SaeLayout, sae: Sae, metadata: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write a finished SAE. ``cfg.json`` comes last: the folder is finished because it is there."""
    if sae.centred:
        raise ValueError("fold the SAE before it is exported")
    tensors = {name: p.detach().cpu() for name, p in sae.named_parameters()}
    tensors["W_enc"] = tensors["W_enc"].T
    bucket.write(layout.weights, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}))
    bucket.write(layout.provenance, json.dumps({"scopemill": importlib.metadata.version("scopemill")} | provenance, indent=1).encode())
    bucket.write(layout.config, json.dumps(_saelens_config(sae, metadata), indent=1).encode())


def _saelens_config(sae: Sae, metadata: dict[str, Any]) -> dict[str, Any]:
    """``metadata`` gives model_name, hook_name and context_size."""
    return {
        "architecture": sae.architecture,
        "d_in": sae.d,
        "d_sae": sae.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if Hook.parse(metadata["hook_name"]).site == "attn_z" else "none",
        "metadata": {
            "sae_lens_version": SAE_LENS_VERSION,
            "sae_lens_training_version": None,
            "hook_head_index": None,
            "prepend_bos": True,
            "seqpos_slice": [None],
            "model_from_pretrained_kwargs": {},
            "exclude_special_tokens": True,
        }
        | metadata,
    }


def load_sae(folder: str) -> Sae:
    """The finished SAE in a folder (any fsspec URL), for raw activations; float32, on the CPU, no gradients.

    SaeFormatError if the folder is not one, is of an architecture that is not known, or does not fit its config.
    """
    bucket = Bucket(folder)
    config_path, weights_path = (path.lstrip("/") for path in (SaeLayout("").config, SaeLayout("").weights))
    if not bucket.exists(config_path):
        raise SaeFormatError(f"{folder} is not a finished SAE: it has no {config_path}")
    place = bucket.place(weights_path)
    architecture, config = _read_config(bucket, config_path)
    try:
        tensors = safetensors.torch.load(bucket.read(weights_path))
    except MissingObject as error:
        raise SaeFormatError(f"{folder} is not a finished SAE: {error}") from error
    except safetensors.SafetensorError as error:
        raise SaeFormatError(f"{place} cannot be read: {error}") from error
    decoder = {name: t for name, t in tensors.items() if name == "W_dec"}
    check_tensors(place, decoder, {"W_dec": [config["d_sae"], config["d_in"]]})  # before memory is taken for that much
    sae = architecture(config["d_in"], config["d_sae"], centred=bool(config.get("apply_b_dec_to_input")))
    check_tensors(place, tensors, {n: p.shape[::-1] if n == "W_enc" else p.shape for n, p in sae.named_parameters()})
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise SaeFormatError(f"{place}: tensor {name} holds a value that is not a finite number")
    sae.load_state_dict(tensors | {"W_enc": tensors["W_enc"].T})
    return sae.requires_grad_(False)


def _read_config(bucket: Bucket, path: str) -> tuple[type[Sae], dict[str, Any]]:
    """The architecture, and a ``cfg.json`` whose widths are counts."""
    place = bucket.place(path)
    try:
        config = json.loads(bucket.read(path))
    except ValueError as error:
        raise SaeFormatError(f"{place} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SaeFormatError(f"{place} is not a JSON object")
    name = config.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise SaeFormatError(f"{place}: architecture {name!r} is not known: there are {', '.join(ARCHITECTURES)}")
    if config.get("normalize_activations", "none") != "none":
        raise SaeFormatError(f"{place}: normalize_activations {config['normalize_activations']!r} is not read here; fold it first")
    for field in ("d_in", "d_sae"):
        if type(config.get(field)) is not int or config[field] < 1:
            raise SaeFormatError(f"{place}: {field} is {config.get(field)!r}, not a number of at least 1")
    return ARCHITECTURES[name], config
