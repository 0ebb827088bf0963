"""From a file's tensors to an SAE and back: what the formats share.

A format's table of names gives for each tensor of its file the parameter that it is, ``W_enc.T`` where the file holds the
transpose. A transpose loses no bit.
"""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from scopemill.proto.errors import MissingObject, SaeFormatError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.weights import check_tensors

Tensors = dict[str, torch.Tensor]
_TRANSPOSED = ".T"


def read_bytes(bucket: Bucket, name: str) -> bytes:
    """A file of an SAE's folder; SaeFormatError if it is not there."""
    try:
        return bucket.read(name)
    except MissingObject as error:
        raise SaeFormatError(f"{bucket.url} is not a finished SAE: {error}") from error


def read_config(bucket: Bucket, name: str) -> dict[str, Any]:
    """A JSON object; SaeFormatError if it is none."""
    try:
        config = json.loads(read_bytes(bucket, name))
    except (ValueError, RecursionError) as error:
        raise SaeFormatError(f"{bucket.place(name)} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SaeFormatError(f"{bucket.place(name)} is not a JSON object")
    return config


def read_safetensors(bucket: Bucket, name: str) -> Tensors:
    try:
        return safetensors.torch.load(read_bytes(bucket, name))
    except safetensors.SafetensorError as error:
        raise SaeFormatError(f"{bucket.place(name)} cannot be read: {error}") from error


def check_count(place: str, config: Mapping[str, Any], field: str, most: int | None = None) -> int:
    """A field that has to be a whole number of at least 1, and at most ``most``."""
    value = config.get(field)
    if type(value) is not int or value < 1:
        raise SaeFormatError(f"{place}: {field} is {value!r}, not a number of at least 1")
    if most is not None and value > most:
        raise SaeFormatError(f"{place}: {field} is {value}, more than the {most} latents")
    return value


def shape_of(place: str, tensors: Tensors, name: str) -> tuple[int, int]:
    """Rows and columns of a matrix, where the file's tensors are all that says how wide an SAE is."""
    if name not in tensors:
        raise SaeFormatError(f"{place} lacks the tensor {name}")
    if tensors[name].ndim != 2:
        raise SaeFormatError(f"{place}: tensor {name} has the shape {list(tensors[name].shape)} where a matrix belongs")
    return tensors[name].shape[0], tensors[name].shape[1]


def filled(place: str, sae: Sae, tensors: Tensors, names: Mapping[str, str]) -> Sae:
    """An SAE made on torch's meta device, with a file's tensors as its weights: float32, on the CPU, no gradients.

    SaeFormatError unless these are exactly the tensors that the table names, of the right shapes, with sound values.
    """
    parameters = dict(sae.named_parameters())
    shapes = {}
    for name, parameter in names.items():
        shape = parameters[parameter.removesuffix(_TRANSPOSED)].shape
        shapes[name] = shape[::-1] if parameter.endswith(_TRANSPOSED) else shape
    check_tensors(place, tensors, shapes)
    check_values(place, tensors)
    sae = sae.to_empty(device="cpu").requires_grad_(False)
    for name, parameter in names.items():
        values = tensors[name].T if parameter.endswith(_TRANSPOSED) else tensors[name]
        sae.get_parameter(parameter.removesuffix(_TRANSPOSED)).copy_(values)
    return sae


def laid_out(sae: Sae, names: Mapping[str, str]) -> Tensors:
    """The opposite: an SAE's parameters as the tensors of a file."""
    tensors = {}
    for name, parameter in names.items():
        values = sae.get_parameter(parameter.removesuffix(_TRANSPOSED)).detach().cpu()
        tensors[name] = (values.T if parameter.endswith(_TRANSPOSED) else values).contiguous()
    return tensors


def check_values(place: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """SaeFormatError for a value that is no finite number, or a threshold below zero."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise SaeFormatError(f"{place}: tensor {name} holds a value that is not a finite number")
        if name.endswith("threshold") and (tensor < 0).any():
            raise SaeFormatError(f"{place}: tensor {name} holds a negative value; a JumpReLU's thresholds are at least 0")
