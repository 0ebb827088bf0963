"""Train one shard of an SAE as a follower: another process, rank 0, leads.

Only the leader reads the stream, the bucket and the clock. The leader broadcasts each batch, every rank takes the same step on the
batch, and at a checkpoint the leader gathers the shards.
"""

import torch

from scopemill.trainer.parallel.shards import Command, DistributedShard
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.initialization import new_sae


def follow(assignment: Assignment, shard: DistributedShard, device: torch.device) -> Loop:
    """Execute the leader's commands until END, and return the loop.

    Raises RankLost if the leader is gone.
    """
    command, step = shard.receive_command()
    assert command is Command.START
    loop = _started(assignment, step, shard, device)
    while True:
        command, index = shard.receive_command()
        if command is Command.STEP:
            loop.skip_to(index)
            loop.step(*_batch(assignment, shard, device))
        elif command is Command.SAVE:
            loop.check_finite()
            loop.flush()
            checkpoint.send_state(loop)
        else:
            return loop


def _started(assignment: Assignment, step: int, shard: DistributedShard, device: torch.device) -> Loop:
    if step:
        return checkpoint.receive_loop(assignment.config, assignment.wiring.shape, step, device, shard)
    return Loop(new_sae(assignment, shard).to(device), assignment.config, History())


def _batch(assignment: Assignment, shard: DistributedShard, device: torch.device) -> list[torch.Tensor]:
    """Receive the leader's batch: x [B, d_in], and with targets y [B, d_out]."""
    shape, rows = assignment.wiring.shape, assignment.config.batch_size
    widths = [shape.d_in] if shape.autoencoder else [shape.d_in, shape.d_out]
    return [shard.broadcast(torch.empty(rows, d, device=device)) for d in widths]
