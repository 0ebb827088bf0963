"""Finished SAEs of every kind, each parameter its own random numbers."""

import torch

from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import FinishedSae
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.crosscoder import Crosscoder
from scopemill.trainer.sae.crosslayer import CrossLayerTranscoder, PerLayerTranscoder
from scopemill.trainer.sae.matryoshka import Matryoshka
from scopemill.trainer.sae.registry import ACTIVATIONS
from scopemill.trainer.sae.skip import Skip
from scopemill.trainer.sae.transcoder import SkipTranscoder, Transcoder

D, F, K = 12, 30, 5
RESID, MLP_IN, MLP_OUT = "blocks.3.hook_resid_post", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"
LATENTS = ("relu", "gated", "jumprelu", "topk")
# name: body, activation and what else is said of it
KINDS: dict[str, tuple[type[Sae], str, dict]] = {
    **{name: (Sae, name, {}) for name in LATENTS},
    "centred": (Sae, "jumprelu", {"centred": True}),
    "centred_topk": (Sae, "topk", {"centred": True}),
    "layer_norm": (Sae, "jumprelu", {"layer_norm": True}),
    "matryoshka": (Matryoshka, "jumprelu", {}),
    "skip": (Sae, "jumprelu", {"skip": True}),
    **{f"transcoder_{name}": (Transcoder, name, {}) for name in ("relu", "jumprelu", "topk")},
    **{f"skip_transcoder_{name}": (SkipTranscoder, name, {"skip": True}) for name in ("relu", "jumprelu", "topk")},
    "crosscoder": (Crosscoder, "relu", {}),
    "clt": (CrossLayerTranscoder, "jumprelu", {}),
    "per_layer_transcoder": (PerLayerTranscoder, "topk", {}),
}


def finished_sae(kind: str, model: str | None = "gemma-2-2b", seed: int = 0) -> FinishedSae:
    body, latents, options = KINDS[kind]
    shape, inputs, outputs = Shape.square(D), (RESID,), (RESID,)
    if issubclass(body, Transcoder | SkipTranscoder):
        shape, inputs, outputs = Shape((D,), (D + 2,), False), (MLP_IN,), (MLP_OUT,)
    elif body is Crosscoder:
        shape, inputs = Shape((D, D + 1), (D, D + 1), True), ("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
        outputs = inputs
    elif issubclass(body, CrossLayerTranscoder):
        shape = Shape((D, D + 1), (D + 2, D + 3), False)
        inputs, outputs = ("blocks.1.mlp.hook_in", MLP_IN), ("blocks.1.hook_mlp_out", MLP_OUT)
    activation = TopK(F, K) if latents == "topk" else ACTIVATIONS[latents](F)
    options = options | ({"skip": Skip(shape.d_in, shape.d_out)} if options.get("skip") else {})
    sae = body(shape, F, activation, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.uniform_(0.1, 0.8, generator=generator) if "threshold" in name else p.normal_(0, 0.4, generator=generator)
    return FinishedSae(sae.requires_grad_(False), inputs, outputs, model, {"context_size": 1024, "dataset_path": "corpus"})


def unit_jumprelu(hook: str, d: int, width: int, model: str | None = None) -> FinishedSae:
    """A JumpReLU SAE of one hook, with decoder rows of norm 1, that fires on some of a real model's rows."""
    sae = Sae(Shape.square(d), width, ACTIVATIONS["jumprelu"](width))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_enc.normal_(0, 0.1, generator=generator)
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(width, d, generator=generator), dim=1))
        sae.b_dec.normal_(0, 0.3, generator=generator)
        sae.activation.threshold.fill_(0.2)
    return FinishedSae(sae.requires_grad_(False), (hook,), (hook,), model)


def rows(sae: Sae, n: int = 200, scale: float = 3.0) -> torch.Tensor:
    """Raw activations [n, d_in]."""
    return scale * torch.randn(n, sae.shape.d_in, generator=torch.Generator().manual_seed(1)) + 0.5


def same_bits(one: Sae, other: Sae) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
