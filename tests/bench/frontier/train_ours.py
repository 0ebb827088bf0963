"""Ours, as `exported` says: the public `train_sae`, on the rows in their order."""

import numpy as np
from exported import Job, batches, serve
from score import Weights

from scopemill import Sae, train_sae


def train(job: Job):
    sae = train_sae(
        iter(batches(job)), job["architecture"], job["width"], job["sparsity"], steps=job["steps"], batch_size=job["batch"],
        seed=job["seed"], learning_rate=job["learning_rate"], **job["settings"],
    )  # fmt: skip
    return lambda x: (weights_of(sae), sae(x))


def weights_of(sae: Sae) -> Weights:
    """A finished SAE in the one form of `score`."""
    held = {name.removeprefix("activation."): value.numpy() for name, value in sae.state_dict().items()}
    return Weights.of({"b_enc": np.zeros(sae.d_sae)} | held | ({"k": np.array(sae.cfg.k)} if sae.cfg.k else {}))


if __name__ == "__main__":
    serve(train)
