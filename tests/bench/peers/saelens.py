"""SAELens' step, as `step` says: its training SAEs and its trainer with their default settings."""

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from step import serve


def jumprelu(x, weights, l0):
    return made(x, weights, JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**sizes(weights))))


def topk(x, weights, l0):
    return made(x, weights, TopKTrainingSAE(TopKTrainingSAEConfig(k=l0, **sizes(weights))))


def batchtopk(x, weights, l0):
    return made(x, weights, BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=l0, **sizes(weights))))


def sizes(weights):
    return dict(zip(("d_sae", "d_in"), weights["W_enc"].shape, strict=True))


def made(x, weights, sae):
    with torch.no_grad():
        for name, value in weights.items():
            getattr(sae, name).copy_(value.T if name == "W_enc" else value)
    config = SAETrainerConfig(total_training_samples=len(x) * 1000, train_batch_size_samples=len(x), lr_end=3e-5)
    trainer = SAETrainer(config, sae, iter(()))
    with torch.no_grad():
        given = TrainStepInput(x, trainer.get_coefficients(), trainer.dead_neurons, n_training_steps=0, is_logging_step=False)
        output = sae.training_forward_pass(given)

    def step():
        trainer.step(x)
        trainer.n_training_steps += 1

    fired = (output.feature_acts > 0).sum(-1).float().mean().item()
    return {"reconstruction": output.losses["mse_loss"].item(), "l0": fired}, step


if __name__ == "__main__":
    serve({"jumprelu": jumprelu, "topk": topk, "batchtopk": batchtopk})
