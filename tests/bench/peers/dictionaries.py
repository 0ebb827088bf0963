"""dictionary_learning's step, as `step` says: its trainers' `update` with their default settings."""

from itertools import count

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from step import serve


def jumprelu(x, weights, l0):
    trainer = JumpReluTrainer(target_l0=l0, **settings(weights))
    places = {name: getattr(trainer.ae, name) for name in weights}
    return made(x, {name: (places[name], w.T if name == "W_enc" else w) for name, w in weights.items()}, trainer)


def topk(x, weights, l0, kind=TopKTrainer):
    trainer = kind(k=l0, **settings(weights))
    encoder, decoder = trainer.ae.encoder, trainer.ae.decoder
    places = {"W_enc": encoder.weight, "b_enc": encoder.bias, "b_dec": trainer.ae.b_dec, "W_dec": decoder.weight}
    return made(x, {name: (places[name], w.T if name == "W_dec" else w) for name, w in weights.items()}, trainer)


def batchtopk(x, weights, l0):
    return topk(x, weights, l0, BatchTopKTrainer)


def settings(weights):
    width, d = weights["W_enc"].shape
    return {"steps": 100_000, "activation_dim": d, "dict_size": width, "layer": 0, "lm_name": "none", "device": "cpu"}


def made(x, filled, trainer):
    with torch.no_grad():
        for place, value in filled.values():
            place.copy_(value)
        log = trainer.loss(x, step=1, logging=True)
    numbers = count(1)  # step 0 moves the decoder's bias to the median of the rows, which takes long and comes once
    told = {"reconstruction": log.losses["l2_loss"], "l0": (log.f > 0).sum(-1).float().mean().item()}
    return told, lambda: trainer.update(next(numbers), x)


if __name__ == "__main__":
    serve({"jumprelu": jumprelu, "topk": topk, "batchtopk": batchtopk})
