"""Read dictionary_learning's format: a folder of ``ae.pt`` and ``config.json``.

``ae.pt`` is a pickle. torch's weights-only loader takes tensors and refuses everything else, so no code of the file runs.
"""

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from scopemill.proto.errors import SaeFormatError
from scopemill.proto.hooks import Hook
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats.archives import check_storages, check_unpacked_size
from scopemill.trainer.formats.config_fields import DICTIONARY_LEARNING_TRAINING, check_known
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.formats.tensors import Tensors, check_count, filled, read_bytes, read_config
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.activations.gated import Gated
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.activations.relu import ReLU
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae

WEIGHTS, CONFIG = "ae.pt", "config.json"
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec.T"}
_MATRICES = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_THRESHOLD = {"threshold": "activation.threshold"}
_READ = ("dict_class", "activation_dim", "dict_size", "k")
_UNUSED = ("k", "group_sizes")  # k is read from the config; group sizes matter in training only


@dataclass(frozen=True)
class _Layout:
    """Map a class's tensors to parameters; ``centred``: the decoder's bias is subtracted before encoding."""

    activation: Callable[..., Activation]
    centred: bool
    names: dict[str, str]


_LAYOUTS = {
    "AutoEncoder": _Layout(ReLU, True, _LINEAR | {"bias": "b_dec"}),
    "AutoEncoderNew": _Layout(ReLU, False, _LINEAR | {"decoder.bias": "b_dec"}),
    "GatedAutoEncoder": _Layout(Gated, True, {
        "encoder.weight": "W_enc", "decoder.weight": "W_dec.T", "decoder_bias": "b_dec", "r_mag": "activation.r_mag",
        "gate_bias": "activation.b_gate", "mag_bias": "activation.b_mag",
    }),
    "JumpReluAutoEncoder": _Layout(JumpReLU, False, _MATRICES | _THRESHOLD),
    "AutoEncoderTopK": _Layout(TopK, True, _LINEAR | {"b_dec": "b_dec"}),
    "BatchTopKSAE": _Layout(JumpReLU, True, _LINEAR | {"b_dec": "b_dec"} | _THRESHOLD),
    "MatryoshkaBatchTopKSAE": _Layout(JumpReLU, True, _MATRICES | _THRESHOLD),
}  # fmt: skip
_SITES = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attention_out": "attn_out"}  # by the name of a submodule


def read_dictionary_learning(folder: str) -> FinishedSae:
    """Return the SAE of a dictionary_learning folder.

    Raises SaeFormatError if its class is unknown or its files do not fit.
    """
    bucket = Bucket(folder)
    place, config = bucket.place(CONFIG), read_config(bucket, CONFIG)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict) or not isinstance(trainer.get("dict_class"), str) or trainer["dict_class"] not in _LAYOUTS:
        name = trainer.get("dict_class") if isinstance(trainer, dict) else None
        raise SaeFormatError(f"{place}: trainer.dict_class {name!r} is not known; known are {', '.join(_LAYOUTS)}.")
    layout = _LAYOUTS[trainer["dict_class"]]
    check_known(f"{place}: trainer", trainer, _READ, DICTIONARY_LEARNING_TRAINING)
    d, width = check_count(place, trainer, "activation_dim"), check_count(place, trainer, "dict_size")
    with torch.device("meta"):
        if layout.activation is TopK:
            activation: Activation = TopK(width, check_count(place, trainer, "k", most=width))
        else:
            activation = layout.activation(width)
        sae = Sae(Shape.square(d), width, activation, layout.centred)
    tensors = _tensors(bucket.place(WEIGHTS), read_bytes(bucket, WEIGHTS))
    _check_k(bucket.place(WEIGHTS), tensors, trainer)
    if layout.activation is TopK:
        tensors.pop("threshold", None)  # used by another way to encode only
    elif "threshold" in tensors and tensors["threshold"].ndim == 0:
        tensors["threshold"] = tensors["threshold"].expand(width)
    weights = {name: tensor for name, tensor in tensors.items() if name not in _UNUSED}
    hooks, model = _hooks(trainer), trainer.get("lm_name")
    metadata = {"context_size": config["buffer"].get("ctx_len")} if isinstance(config.get("buffer"), dict) else {}
    return FinishedSae(filled(bucket.place(WEIGHTS), sae, weights, layout.names), hooks, hooks, model, metadata)


def _tensors(place: str, data: bytes) -> Tensors:
    check_unpacked_size(place, data)
    try:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SaeFormatError(f"{place} is not read: it holds something else than tensors, which may be code.") from error
    except Exception as error:  # torch raises many kinds of error for a damaged file
        raise SaeFormatError(f"{place} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise SaeFormatError(f"{place} is not a mapping of names to tensors.")
    check_storages(place, tensors)
    return dict(tensors)


def _check_k(place: str, tensors: Tensors, trainer: dict[str, Any]) -> None:
    if "k" in tensors and (tensors["k"].numel() != 1 or tensors["k"].item() != trainer.get("k")):
        raise SaeFormatError(f"{place}: k is {tensors['k'].tolist()}, and {CONFIG} says {trainer.get('k')!r}.")


def _hooks(trainer: dict[str, Any]) -> tuple[str, ...]:
    """Return the hook that the submodule's name and the layer name, or nothing."""
    site = _SITES.get(re.sub(r"_layer_?\d+$", "", str(trainer.get("submodule_name"))))
    layer = trainer.get("layer")
    return (Hook(layer, site).name,) if site and type(layer) is int and layer >= 0 else ()
