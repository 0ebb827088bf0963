"""sae-lens, as `exported` says: its trainer and training SAEs, and the weights as it saves them for inference.

Rows are scaled so that E||x||^2 = d, as its ``normalize_activations: expected_average_only_in`` does, but here: when sae-lens 6.54 folds
its own scale into a BatchTopK SAE that counts decoder norms, the threshold keeps the old scale, and L0 is no longer k.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from exported import NORM_BATCHES, Job, batches, serve
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.numpy import load_file
from score import Weights

KINDS = {
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
}


def train(job: Job):
    given, steps = batches(job), job["steps"]
    d = given[0].shape[1]
    scale = float((d / np.mean([batch.square().sum(1).mean().item() for batch in given[:NORM_BATCHES]])) ** 0.5)
    settings = dict(job["settings"])
    own = {name: settings.pop(name) for name in ("lr_warm_up_steps", "lr_decay_fraction", "dead_feature_window")}
    kind, config = KINDS[job["architecture"]]
    if job["architecture"] == "jumprelu":
        settings["l0_coefficient"] = job["sparsity"] * d  # errors are d times as large as on rows with E||x||^2 = 1
        settings["l0_warm_up_steps"] = int(settings.pop("l0_warm_up_fraction") * steps)
    else:
        settings["k"] = int(job["sparsity"])
    if job["architecture"] == "matryoshka":
        settings["matryoshka_widths"] = [round(share * job["width"]) for share in settings.pop("prefixes")]
    sae = kind(config(d_in=d, d_sae=job["width"], **settings))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * job["batch"], train_batch_size_samples=job["batch"], lr=job["learning_rate"],
            lr_end=job["learning_rate"] / 10, lr_warm_up_steps=min(own["lr_warm_up_steps"], steps // 2),
            lr_decay_steps=int(own["lr_decay_fraction"] * steps), dead_feature_window=own["dead_feature_window"],
        ),
        sae,
        (batch * scale for batch in given),
    )  # fmt: skip
    trained = trainer.fit()

    def export(x: torch.Tensor) -> tuple[Weights, torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            weights, described = trained.save_inference_model(folder)
            held, cfg = load_file(weights), json.loads(Path(described).read_text())
            rebuilt = SAE.load_from_disk(folder)(x * scale) / scale
        held = {name: value.astype(np.float64) for name, value in held.items()}
        if cfg["apply_b_dec_to_input"]:
            held["b_enc"] -= held["b_dec"] @ held["W_enc"]
        held |= {"W_enc": held["W_enc"].T * scale, "W_dec": held["W_dec"] / scale, "b_dec": held["b_dec"] / scale}
        return Weights.of(held | ({"k": np.array(cfg["k"])} if cfg["architecture"] == "topk" else {})), rebuilt

    return export


if __name__ == "__main__":
    serve(train)
