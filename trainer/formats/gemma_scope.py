"""Read and write Gemma Scope's JumpReLU SAEs.

Gemma Scope 1 keeps them in ``params.npz``, Gemma Scope 2 in ``params.safetensors``. These SAEs take raw activations and have no
pre-encoder bias, so a pre-encoder bias is folded when writing. An embedding SAE of Gemma Scope 1 takes rows of the embedding matrix,
and the hook gives those rows times sqrt(d): this factor is folded both ways.
"""

import io
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import safetensors.torch
import torch

from scopemill.proto.errors import SaeFormatError
from scopemill.proto.layout import width_label
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats.archives import read_npz
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.formats.gemma_scope_paths import EMBEDDING, GENERATION_1, GENERATION_2, Generation, origin_of
from scopemill.trainer.formats.saelens import fold_factors
from scopemill.trainer.formats.tensors import Tensors, filled, laid_out, read_bytes, read_safetensors, shape_of
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.matryoshka import Matryoshka
from scopemill.trainer.sae.skip import Skip
from scopemill.trainer.sae.transcoder import SkipTranscoder, Transcoder

WEIGHTS_1, WEIGHTS_2 = "params.npz", "params.safetensors"
_NAMES_1 = {"W_enc": "W_enc.T", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "activation.threshold"}
_NAMES_2 = {name.lower(): parameter for name, parameter in _NAMES_1.items()}
# What a reader of the files takes for granted of the rows, under SAELens' names; any other value would be lost.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "hook_head_index": (None,),
    "prepend_bos": (None, True),
    "seqpos_slice": (None, [], [None], [None, None], (), (None,), (None, None)),
    "model_from_pretrained_kwargs": (None, {}),
}
_SKIP = {"affine_skip_connection": "skip.W_skip"}


def read_gemma_scope(folder: str) -> FinishedSae:
    """Return the SAE of a Gemma Scope 1 folder.

    Raises SaeFormatError if its file or its path is none of Gemma Scope's.
    """
    bucket = Bucket(folder)
    place = bucket.place(WEIGHTS_1)
    return _read(bucket, place, GENERATION_1, read_npz(place, read_bytes(bucket, WEIGHTS_1)), _NAMES_1)


def read_gemma_scope_2(folder: str) -> FinishedSae:
    """Return the SAE of a Gemma Scope 2 folder.

    Raises SaeFormatError if its file or its path is none of Gemma Scope's.
    """
    bucket = Bucket(folder)
    tensors = read_safetensors(bucket, WEIGHTS_2)
    return _read(bucket, bucket.place(WEIGHTS_2), GENERATION_2, tensors, _NAMES_2 | (_SKIP if _SKIP.keys() <= tensors.keys() else {}))


def gemma_scope_files(place: str, finished: FinishedSae) -> dict[str, bytes]:
    """Return the folder's one file.

    The folder's path has to describe the SAE, since the file holds only tensors.
    """
    file = io.BytesIO()
    arrays = {name: tensor.float().numpy() for name, tensor in _tensors(place, finished, GENERATION_1, _NAMES_1).items()}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return {WEIGHTS_1: file.getvalue()}


def gemma_scope_2_files(place: str, finished: FinishedSae) -> dict[str, bytes]:
    """Return the folder's one file.

    The folder's path has to describe the SAE, since the file holds only tensors.
    """
    names = _NAMES_2 | (_SKIP if finished.sae.skip else {})
    return {WEIGHTS_2: safetensors.torch.save(_tensors(place, finished, GENERATION_2, names))}


def _read(bucket: Bucket, place: str, generation: Generation, tensors: Tensors, names: Mapping[str, str]) -> FinishedSae:
    origin, l0 = generation.parse(bucket.url)
    encoder, decoder = list(names)[:2]
    (d_in, width), (_, d_out) = shape_of(place, tensors, encoder), shape_of(place, tensors, decoder)
    if width_label(width) != origin.width:
        raise SaeFormatError(f"{place} holds {width} latents, and its path says width_{origin.width}.")
    autoencoder, affine = origin.input == origin.output, "affine_skip_connection" in names
    if affine != origin.affine:
        there = "holds the tensor affine_skip_connection" if affine else "lacks the tensor affine_skip_connection"
        raise SaeFormatError(f"{place} {there}, and its path {'ends' if origin.affine else 'does not end'} in _affine.")
    if affine and autoencoder:
        raise SaeFormatError(f"{place} holds the tensor affine_skip_connection, which only transcoders have, and its path names an SAE.")
    kind = Sae if autoencoder else SkipTranscoder if affine else Transcoder
    with torch.device("meta"):
        skip = Skip(d_in, d_out) if affine else None
        sae = kind(Shape((d_in,), (d_in if autoencoder else d_out,), autoencoder), width, JumpReLU(width), skip=skip)
    factors = tensors.pop("scaling_factor", None)
    sae = filled(place, sae, tensors, names)
    if factors is not None:
        fold_factors(place, sae, factors)
    if origin.input == EMBEDDING:
        _scale_units(sae, d_in**0.5)
    metadata = {"l0": l0, "prepend_bos": True, "context_size": 1024}
    return FinishedSae(sae, (origin.input,), (origin.output,), origin.model, metadata)


def _tensors(place: str, finished: FinishedSae, generation: Generation, names: Mapping[str, str]) -> Tensors:
    """Return the file's tensors. SaeFormatError if the format cannot hold the SAE, or the path describes another SAE."""
    sae = finished.sae
    kinds = (Sae, Matryoshka, Transcoder) + ((SkipTranscoder,) if generation is GENERATION_2 else ())
    if type(sae) not in kinds or sae.activation.name != "jumprelu" or sae.layer_norm or (sae.skip and type(sae) is not SkipTranscoder):
        kind = type(sae).__name__ + (" with a skip" if sae.skip else "") + (" under layer_norm" if sae.layer_norm else "")
        raise SaeFormatError(f"{place}: Gemma Scope's files hold JumpReLU SAEs, and this is a {kind} with {sae.activation.name} latents.")
    _check_metadata(place, finished.metadata)
    origin, l0 = generation.parse(place)
    if origin != origin_of(finished):
        raise SaeFormatError(f"{place} describes another SAE; the path of this one ends in {generation.path_of(finished, l0)}.")
    if sae.centred or origin.input == EMBEDDING:
        sae = fold(deepcopy(sae).float(), [1.0], [1.0])  # a copy with its pre-encoder bias folded; in bfloat16 it would lose bits
    if origin.input == EMBEDDING:
        _scale_units(sae, sae.shape.d_in**-0.5)
    return laid_out(sae, names)


def _check_metadata(place: str, metadata: Mapping[str, Any]) -> None:
    """Raise SaeFormatError for what is known of the SAE's rows and cannot be told by tensors and a path."""
    for field, plain in _PLAIN.items():
        if metadata.get(field) not in plain:
            raise SaeFormatError(
                f"{place}: Gemma Scope's files cannot hold {field} = {metadata[field]!r}: without it the SAE would be given other rows."
            )


@torch.no_grad()
def _scale_units(sae: Sae, factor: float) -> None:
    """Scale the SAE in place to activations that are larger by a factor; its latents keep their values."""
    sae.W_enc.div_(factor)
    sae.W_dec.mul_(factor)
    sae.b_dec.mul_(factor)
