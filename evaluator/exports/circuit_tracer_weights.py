"""Lay transcoders out as circuit-tracer loads them.

A set of transcoders has one for each layer from 0 on, all of one width; a cross-layer transcoder writes to its own and all later layers.
It knows ReLU and JumpReLU only, and one width of the residual stream. Legend of shapes: L layers, F latents of a layer, d of the stream.
"""

from collections.abc import Callable, Sequence
from typing import Any

import safetensors.torch
import torch

from scopemill.proto.errors import SaeFormatError
from scopemill.proto.hooks import SITES, Hook
from scopemill.trainer.formats import FinishedSae
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.activations.relu import ReLU
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.crosslayer import CrossLayerTranscoder, PerLayerTranscoder

Files = dict[str, Callable[[], bytes]]  # made one after another, so that one layer is in memory at once


def weights_of(saes: Sequence[FinishedSae]) -> tuple[dict[str, Any], Files]:
    """Return ``config.yaml`` and the files of tensors; SaeFormatError for what circuit-tracer cannot load."""
    for finished in saes:
        _check(finished)
    cross = any(type(finished.sae) is CrossLayerTranscoder for finished in saes)
    if cross and len(saes) > 1:
        raise SaeFormatError("circuit-tracer takes a cross-layer transcoder alone, or a set of transcoders of single layers")
    inputs = [Hook.parse(name) for finished in saes for name in finished.inputs]
    outputs = [Hook.parse(name) for finished in saes for name in finished.outputs]
    if [hook.layer for hook in sorted(inputs)] != list(range(len(inputs))):
        layers = ", ".join(str(hook.layer) for hook in sorted(inputs))
        raise SaeFormatError(f"circuit-tracer needs one transcoder for each layer from 0 on, and these read the layers {layers}")
    if len({hook.site for hook in inputs}) > 1 or len({hook.site for hook in outputs}) > 1:
        raise SaeFormatError("circuit-tracer needs transcoders of one site that is read and one that is written, the same in all layers")
    if len({finished.sae.width // len(finished.inputs) for finished in saes}) > 1:
        raise SaeFormatError("circuit-tracer needs as many latents in every layer, and the widths of these transcoders differ")
    config: dict[str, Any] = {
        "model_name": saes[0].model,
        "model_kind": "cross_layer_transcoder" if cross else "transcoder_set",
        "feature_input_hook": SITES[inputs[0].site],
        "feature_output_hook": SITES[outputs[0].site],
    }
    files: Files = {}
    for finished in saes:
        files |= _cross_layer(finished.sae) if cross else _per_layer(finished)  # type: ignore[arg-type]
    return config, files


def _check(finished: FinishedSae) -> None:
    sae, name = finished.sae, ", ".join(finished.inputs)
    if sae.shape.autoencoder:
        raise SaeFormatError(f"{name}: circuit-tracer traces transcoders, and this SAE reconstructs the hook that it reads")
    if type(sae.activation) not in (JumpReLU, ReLU):
        raise SaeFormatError(f"{name}: circuit-tracer loads JumpReLU and ReLU transcoders, and this one is a {sae.activation.name}")
    if sae.layer_norm:
        raise SaeFormatError(f"{name}: circuit-tracer has no place for a layer norm before the encoder")
    if len({*sae.shape.inputs, *sae.shape.outputs}) > 1:
        raise SaeFormatError(f"{name}: circuit-tracer needs inputs and outputs of one width, and these are {sae.d_in} and {sae.d_out}")
    if len(finished.inputs) > 1 and not isinstance(sae, CrossLayerTranscoder):
        raise SaeFormatError(f"{name}: circuit-tracer needs latents that read one layer each")
    read, written = ([Hook.parse(hook).layer for hook in hooks] for hooks in (finished.inputs, finished.outputs))
    if read != written:
        raise SaeFormatError(f"{name}: circuit-tracer needs transcoders that write to the layers which they read")


def _per_layer(finished: FinishedSae) -> Files:
    """Return a file for each layer of single transcoders, or of a per-layer one."""
    layers = [Hook.parse(name).layer for name in finished.inputs]
    return {f"layer_{layer}.safetensors": _saved(_transcoder, finished.sae, place) for place, layer in enumerate(layers)}


def _cross_layer(sae: CrossLayerTranscoder) -> Files:
    files: Files = {}
    for layer in range(len(sae.shape.inputs)):
        files[f"W_enc_{layer}.safetensors"] = _saved(_encoder_of, sae, layer)
        files[f"W_dec_{layer}.safetensors"] = _saved(_decoder_of, sae, layer)
    return files


def _saved(tensors: Callable[[Any, int], dict[str, torch.Tensor]], sae: Sae, layer: int) -> Callable[[], bytes]:
    return lambda: safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors(sae, layer).items()})


def _transcoder(sae: Sae, place: int) -> dict[str, torch.Tensor]:
    if isinstance(sae, PerLayerTranscoder):
        own, out = _slices(sae, place)
        encoder, decoder, bias, mean = sae.W_enc[place], sae.W_dec[place], sae.b_enc[own], sae.b_dec[out]
    else:
        own, encoder, decoder, bias, mean = slice(None), sae.W_enc, sae.W_dec, sae.folded_bias(), sae.b_dec
    tensors = {"W_enc": encoder, "W_dec": decoder, "b_enc": bias, "b_dec": mean}
    if isinstance(sae.activation, JumpReLU):
        tensors["activation_function.threshold"] = sae.activation.threshold[own]
    return tensors | ({"W_skip": sae.skip.matrix} if sae.skip else {})


def _encoder_of(sae: CrossLayerTranscoder, layer: int) -> dict[str, torch.Tensor]:
    own, out = _slices(sae, layer)
    tensors = {f"W_enc_{layer}": sae.W_enc[layer], f"b_enc_{layer}": sae.b_enc[own], f"b_dec_{layer}": sae.b_dec[out]}
    if isinstance(sae.activation, JumpReLU):
        tensors[f"threshold_{layer}"] = sae.activation.threshold[own]
    return tensors


def _decoder_of(sae: CrossLayerTranscoder, layer: int) -> dict[str, torch.Tensor]:
    """Return the decoder rows of a layer, [F, L - layer, d]."""
    return {f"W_dec_{layer}": sae.W_dec[layer].unflatten(1, (-1, sae.shape.outputs[layer]))}


def _slices(sae: CrossLayerTranscoder, layer: int) -> tuple[slice, slice]:
    """Return a layer's latents, and its columns of the output."""
    start = sum(sae.shape.outputs[:layer])
    return slice(layer * sae.per_layer, (layer + 1) * sae.per_layer), slice(start, start + sae.shape.outputs[layer])
