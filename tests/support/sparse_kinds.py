"""Small SAEs of every architecture over every activation, their weights moved off the start."""

import torch

from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import OWN_ACTIVATION, PAIRED, SaeConfig, only_read
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import ARCHITECTURES, initial_sae

B, F = 64, 200  # a width that is no multiple of the chunks that loops look at
KINDS = [(word, activation) for word in ARCHITECTURES for activation in (
    [OWN_ACTIVATION[word]] if word in OWN_ACTIVATION else ["relu", "jumprelu", "topk", "batchtopk"]
)]  # fmt: skip


def shape_of(word: str) -> Shape:
    if word == "crosscoder":
        return Shape((10, 14), (10, 14), autoencoder=True)
    if word in ("clt", "per_layer_transcoder"):
        return Shape((16, 14, 12), (8, 10, 12), autoencoder=False)
    return Shape((16,), (12,), autoencoder=False) if word in PAIRED else Shape.square(16)


def make(word: str, activation: str, **fields) -> tuple[SaeConfig, Sae]:
    counted = activation in ("topk", "batchtopk")
    given = dict(sparsities=[8 if counted else 0.01], widths=[F], batch_size=B, tokens=B * 50, dead_after_tokens=1000)
    given |= {"initial_scale": "as_published", "adam_beta1": 0.0, "learning_rate": 3e-3, "bandwidth": 0.03} | fields
    given = {"sparsity_warmup_steps": 300, "sparsity_warmup_fraction": 0.0} | given
    config = TrainConfig(template="quick", **only_read(dict(architecture=word, activation=activation, **given))).saes()[0]
    sae = initial_sae(config, shape_of(word), torch.zeros(shape_of(word).d_out))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in sae.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
        if activation in ("jumprelu", "batchtopk"):
            sae.activation.threshold.fill_(1.0 if activation == "jumprelu" else 0.05)
    return config, sae
