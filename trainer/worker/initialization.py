"""Make the SAE that training starts from: random weights, or a finished SAE."""

import torch

from scopemill.trainer.formats import read_start
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.sae.start import started_from
from scopemill.trainer.worker.assignment import Assignment


def new_sae(assignment: Assignment, shard: LatentShard | None = None) -> Sae:
    """Return an assignment's SAE before its first step, or this rank's shard.

    Only rank 0 reads a finished SAE to start from.
    """
    config, wiring = assignment.config, assignment.wiring
    means = [
        torch.from_numpy(stats.mean_vector / port.unit(config)).float()
        for stats, port in zip(assignment.targets or assignment.inputs, wiring.outputs, strict=True)
    ]
    sae = initial_sae(config, wiring.shape, torch.cat(means), shard)
    if place := config.initial_sae:
        sae.shard.scatter(sae.state_dict(), lambda: started_from(config, wiring, read_start(place)).state_dict())
    return sae
