"""Finished SAEs as folders in SAELens' format, and back.

``cfg.json`` and ``sae_weights.safetensors``; the SAE takes raw activations: the scale and the pre-encoder bias are
folded. SAELens keeps ``W_enc`` as [d_in, d_sae], here it is [F, d]: a transpose loses no bit.
"""

import importlib.metadata
import json
from typing import Any

import safetensors.torch
import torch

from scopemill.proto.bucket import Bucket
from scopemill.proto.errors import MissingObject, SaeFormatError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.trainer.architectures import ARCHITECTURES
from scopemill.trainer.sae import Sae

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
    place = SaeLayout("")
    try:
        config = json.loads(bucket.read(place.config.lstrip("/")))
        tensors = safetensors.torch.load(bucket.read(place.weights.lstrip("/")))
    except MissingObject as error:
        raise SaeFormatError(f"{folder} is not a finished SAE: {error}") from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise SaeFormatError(f"{folder} holds a file that cannot be read: {error}") from error
    architecture = ARCHITECTURES.get(config.get("architecture"))
    if architecture is None:
        raise SaeFormatError(f"{folder}: architecture {config.get('architecture')!r} is not known: there are {', '.join(ARCHITECTURES)}")
    if config.get("normalize_activations", "none") != "none":
        raise SaeFormatError(f"{folder}: normalize_activations {config['normalize_activations']!r} is not read here; fold it first")
    sae = architecture(config["d_in"], config["d_sae"], centred=bool(config.get("apply_b_dec_to_input")))
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    try:
        sae.load_state_dict(tensors)
    except RuntimeError as error:
        raise SaeFormatError(f"{folder}: the weights do not fit cfg.json: {error}") from error
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise SaeFormatError(f"{folder}: a weight is not a finite number")
    return sae.requires_grad_(False)
