"""A process that holds some of an SAE's latents while another leads.

The leader alone reads the stream, the bucket and the clock. It sends each batch, every part takes the same step on it, and at a
checkpoint it collects what the others hold.
"""

import torch

from scopemill.trainer.parallel.shards import Command, DistributedShard
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.initialization import new_sae


def follow(assignment: Assignment, part: DistributedShard, device: torch.device) -> Loop:
    """Do what the leader says until it says that it is over; the loop as it then is. RankLost if it says nothing any more."""
    word, step = part.receive_command()
    assert word is Command.START
    loop = _begun(assignment, step, part, device)
    while True:
        word, index = part.receive_command()
        if word is Command.STEP:
            loop.skip_to(index)
            loop.step(*_batch(assignment, part, device))
        elif word is Command.SAVE:
            loop.flush()
            checkpoint.send_state(loop)
        else:
            return loop


def _begun(assignment: Assignment, step: int, part: DistributedShard, device: torch.device) -> Loop:
    if step:
        return checkpoint.receive_loop(assignment.config, assignment.wiring.shape, step, device, part)
    return Loop(new_sae(assignment, part).to(device), assignment.config, History())


def _batch(assignment: Assignment, part: DistributedShard, device: torch.device) -> list[torch.Tensor]:
    """As the leader's view made it: x [B, d_in], and y [B, d_out] where there are targets."""
    shape, rows = assignment.wiring.shape, assignment.config.batch_size
    widths = [shape.d_in] if shape.autoencoder else [shape.d_in, shape.d_out]
    return [part.broadcast(torch.empty(rows, d, device=device)) for d in widths]
