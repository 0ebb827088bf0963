"""Several parts of one SAE in threads of this process: each with a loop of its own, or a trainer."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from scopemill.proto.config import LOOPBACK
from scopemill.proto.errors import ScopemillError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.parallel.process_group import Rendezvous, join
from scopemill.trainer.parallel.shards import DistributedShard
from scopemill.trainer.worker.actor import Trainer
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.group_trainer import GroupTrainer
from scopemill.trainer.worker.sae_trainer import Outcome
from support.assignments import train

CPU = torch.device("cpu")
T = TypeVar("T")


def on_ranks(parts: int, width: int, work: Callable[[DistributedShard], T]) -> list[T]:
    """What each part's work gives, the leader's first. An error of any is raised."""
    meeting = Rendezvous(LOOPBACK)

    def one(rank: int) -> T:
        with meeting.process_group(parts, CPU) if rank == 0 else join(meeting.address, LOOPBACK, rank, parts, CPU) as group:
            torch.set_num_threads(1)
            shard = DistributedShard(group, width)
            shard.total(0)  # a rank that is done while others still connect would look lost to them
            return work(shard)

    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(one, range(parts)))


def in_processes(bucket: Bucket, assignment: Assignment, address: str, parts: int):
    """What the leader's call gives, and what its followers' calls raised. Trainers are threads here."""
    leader, *followers = (Trainer(bucket.url, 1, False) for _ in range(parts))
    with ThreadPoolExecutor(parts) as pool:
        place = leader.meet(True)
        leading: Future[dict[str, Outcome]] = pool.submit(leader.lead, assignment, address, None, place, parts)
        following = [pool.submit(one.follow, assignment, place, rank, parts) for rank, one in enumerate(followers, 1)]
        return leading.result(), [one.exception() for one in following]


def finish(bucket: Bucket, assignment: Assignment, address: str, parts: int) -> int:
    """The steps done, in so many processes or, of 1, without a process group."""
    if parts == 1:
        return train(GroupTrainer(bucket, [assignment]), address)
    outcomes, errors = in_processes(bucket, assignment, address, parts)
    assert errors == [None] * (parts - 1)
    (outcome,) = outcomes.values()
    if isinstance(outcome, ScopemillError):
        raise outcome
    return outcome
