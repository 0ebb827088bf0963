"""Fill an SAE with a file's tensors, and lay its parameters out as tensors.

All formats share this module. A format's table of names maps each tensor of a file to a parameter; ``W_enc.T`` says that the file holds
the transpose.
"""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from scopemill.proto.errors import CorruptObject, MissingObject, SaeFormatError
from scopemill.proto.finished import check_weights
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.weights import check_tensors

Tensors = dict[str, torch.Tensor]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_CONFIG_BYTES = 2**22
_TRANSPOSED = ".T"


def read_bytes(bucket: Bucket, name: str) -> bytes:
    """Return a file of an SAE's folder. SaeFormatError if the file is missing."""
    try:
        return bucket.read(name)
    except MissingObject as error:
        raise SaeFormatError(f"{bucket.url} is not a finished SAE: {error}") from error


def read_config(bucket: Bucket, name: str) -> dict[str, Any]:
    """Return the fields of a JSON file. SaeFormatError if the file holds no JSON object."""
    data = read_bytes(bucket, name)
    if len(data) > MOST_CONFIG_BYTES:
        raise SaeFormatError(f"{bucket.place(name)} has {len(data)} bytes; a configuration has at most {MOST_CONFIG_BYTES}.")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SaeFormatError(f"{bucket.place(name)} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SaeFormatError(f"{bucket.place(name)} is not a JSON object.")
    return config


def read_safetensors(bucket: Bucket, name: str, provenance: str | None = None) -> Tensors:
    """Return the tensors of a safetensors file. SaeFormatError if the file is missing or damaged.

    The file of the name ``provenance``, where there is one, says which weights belong here.
    """
    data = read_bytes(bucket, name)
    if provenance and bucket.exists(provenance):
        try:
            check_weights(bucket.place(name), data, bucket.read(provenance))
        except CorruptObject as error:
            raise SaeFormatError(str(error)) from error
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise SaeFormatError(f"{bucket.place(name)} cannot be read: {error}") from error


def check_count(place: str, config: Mapping[str, Any], field: str, most: int | None = None) -> int:
    """Return a field that is a whole number from 1 to ``most``.

    Raises SaeFormatError if it is not.
    """
    value = config.get(field)
    if type(value) is not int or value < 1:
        raise SaeFormatError(f"{place}: {field} is {value!r}; it has to be a whole number of at least 1.")
    if most is not None and value > most:
        raise SaeFormatError(f"{place}: {field} is {value}, more than the {most} latents.")
    return value


def shape_of(place: str, tensors: Tensors, name: str) -> tuple[int, int]:
    """Return a matrix's rows and columns.

    This is for formats whose tensors alone say how wide an SAE is.
    """
    if name not in tensors:
        raise SaeFormatError(f"{place} lacks the tensor {name}.")
    if tensors[name].ndim != 2:
        raise SaeFormatError(f"{place}: tensor {name} has the shape {list(tensors[name].shape)} and has to be a matrix.")
    return tensors[name].shape[0], tensors[name].shape[1]


def filled(place: str, sae: Sae, tensors: Tensors, names: Mapping[str, str]) -> Sae:
    """Fill an SAE that is on torch's meta device with a file's tensors.

    The result is float32, on the CPU, without gradients. SaeFormatError unless the file holds exactly the table's tensors, with the
    right shapes, and finite floating-point values.
    """
    parameters = dict(sae.named_parameters())
    shapes = {}
    for name, parameter in names.items():
        shape = parameters[parameter.removesuffix(_TRANSPOSED)].shape
        shapes[name] = shape[::-1] if parameter.endswith(_TRANSPOSED) else shape
    check_tensors(place, tensors, shapes)
    check_dtypes(place, tensors)
    check_values(place, tensors)
    sae = sae.to_empty(device="cpu").requires_grad_(False)
    for name, parameter in names.items():
        values = tensors[name].T if parameter.endswith(_TRANSPOSED) else tensors[name]
        sae.get_parameter(parameter.removesuffix(_TRANSPOSED)).copy_(values)
    return sae


def laid_out(sae: Sae, names: Mapping[str, str]) -> Tensors:
    """Return an SAE's parameters as the tensors of a file: the inverse of `filled`."""
    tensors = {}
    for name, parameter in names.items():
        values = sae.get_parameter(parameter.removesuffix(_TRANSPOSED)).detach().cpu()
        tensors[name] = (values.T if parameter.endswith(_TRANSPOSED) else values).contiguous()
    return tensors


def check_dtypes(place: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise SaeFormatError for a tensor of other than plain floating-point numbers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise SaeFormatError(f"{place}: tensor {name} holds {kind}; weights have to be float16, bfloat16, float32 or float64.")


def check_values(place: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise SaeFormatError for a value that is not finite, or a negative threshold."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise SaeFormatError(f"{place}: tensor {name} holds a value that is not a finite number.")
        if name.endswith("threshold") and (tensor < 0).any():
            raise SaeFormatError(f"{place}: tensor {name} holds a negative value; thresholds are at least 0.")
