"""dictionary_learning, as `exported` says: its trainers' `update` on rows that its scale normalises, as `trainSAE` does."""

import numpy as np
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from exported import NORM_BATCHES, Job, batches, serve
from score import Weights

TRAINERS = {"jumprelu": JumpReluTrainer, "topk": TopKTrainer, "batchtopk": BatchTopKTrainer, "matryoshka": MatryoshkaBatchTopKTrainer}


def train(job: Job):
    given, steps, architecture = batches(job), job["steps"], job["architecture"]
    scale = float(np.mean([batch.square().sum(1).mean().item() for batch in given[:NORM_BATCHES]]) ** 0.5)
    settings = dict(job["settings"])
    dead_after = settings.pop("dead_after_rows", None)
    for name in [name for name in settings if name.endswith("_fraction")]:  # of the steps
        settings[name.removesuffix("_fraction")] = int(settings.pop(name) * steps)
    settings["warmup_steps"] = min(settings["warmup_steps"], steps // 2)
    settings |= {"target_l0": job["sparsity"]} if architecture == "jumprelu" else {"k": int(job["sparsity"])}
    trainer = TRAINERS[architecture](
        steps=steps, activation_dim=given[0].shape[1], dict_size=job["width"], layer=0, lm_name="none", lr=job["learning_rate"],
        device="cpu", seed=job["seed"], **settings,
    )  # fmt: skip
    if dead_after:
        trainer.dead_feature_threshold = dead_after  # ten million rows, and no argument of theirs
    for step, batch in enumerate(given):
        trainer.update(step, batch / scale)

    def export(x: torch.Tensor) -> tuple[Weights, torch.Tensor]:
        trainer.ae.scale_biases(scale)
        own = {name: value.numpy().astype(np.float64) for name, value in trainer.ae.state_dict().items()}
        if "encoder.weight" in own:
            held = {"W_enc": own["encoder.weight"], "b_enc": own["encoder.bias"], "W_dec": own["decoder.weight"].T}
        else:
            held = {"W_enc": own["W_enc"].T, "b_enc": own["b_enc"], "W_dec": own["W_dec"]}
        if architecture != "jumprelu":  # the others subtract the decoder's bias from the input
            held["b_enc"] = held["b_enc"] - held["W_enc"] @ own["b_dec"]
        chosen = {"k": own["k"]} if architecture == "topk" else {"threshold": np.full(job["width"], own["threshold"])}
        return Weights.of(held | {"b_dec": own["b_dec"]} | chosen), trainer.ae(x)

    return export


if __name__ == "__main__":
    serve(train)
