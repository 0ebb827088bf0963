"""Read sparsify's format: a folder of ``sae.safetensors`` and ``cfg.json``.

It holds TopK SAEs and transcoders, with or without a skip. The folder's name, such as ``layers.5.mlp``, names the hook.
"""

import re
from typing import Any

import torch

from scopemill.proto.errors import SaeFormatError
from scopemill.proto.hooks import Hook
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats.config_fields import SPARSIFY_TRAINING, check_known, read_flag
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.formats.tensors import check_count, filled, read_config, read_safetensors
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.skip import Skip
from scopemill.trainer.sae.transcoder import SkipTranscoder, Transcoder

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_READ = ("activation", "signed", "d_in", "k", "transcode", "skip_connection")
_MODULE = re.compile(r"(?:.*/)?(?:[A-Za-z_]+\.)*(?:layers|h)\.(\d+)(\.mlp)?")


def read_sparsify(folder: str) -> FinishedSae:
    """Return the SAE or transcoder of a sparsify folder.

    Raises SaeFormatError if its files are unknown or do not fit.
    """
    bucket = Bucket(folder)
    place, config = bucket.place(CONFIG), read_config(bucket, CONFIG)
    check_known(place, config, _READ, SPARSIFY_TRAINING)
    signed, activation = read_flag(place, config, "signed", False), config.get("activation", "topk")
    if activation != "topk" or signed:
        kind = "signed topk" if signed else activation
        raise SaeFormatError(f"{place}: the activation {kind!r} is not known; known is topk.")
    d = check_count(place, config, "d_in")
    width = check_count(place, config, "num_latents") if config.get("num_latents") else d * check_count(place, config, "expansion_factor")
    k = check_count(place, config, "k", most=width)
    transcoder, skips = read_flag(place, config, "transcode", False), read_flag(place, config, "skip_connection", False)
    kind = Sae if not transcoder else SkipTranscoder if skips else Transcoder
    with torch.device("meta"):
        skip = Skip(d, d) if skips else None
        sae = kind(Shape((d,), (d,), autoencoder=not transcoder), width, TopK(width, k), not transcoder, skip)
    names = _NAMES | ({"W_skip": "skip.W_skip"} if skips else {})
    sae = filled(bucket.place(WEIGHTS), sae, read_safetensors(bucket, WEIGHTS), names)
    return FinishedSae(sae, *_hooks(bucket.url, transcoder))


def _hooks(place: str, transcoder: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = _MODULE.fullmatch(place)
    if transcoder:
        if not found or not found[2]:
            raise SaeFormatError(f"{place} does not name the MLP of this transcoder; its folder's name has to end like layers.5.mlp.")
        return (Hook(int(found[1]), "mlp_in").name,), (Hook(int(found[1]), "mlp_out").name,)
    hooks: tuple[Any, ...] = (Hook(int(found[1]), "mlp_out" if found[2] else "resid_post").name,) if found else ()
    return hooks, hooks
