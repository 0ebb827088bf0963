"""Several parts of one SAE in threads of this process, each with a loop of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from scopemill.trainer.circle import LOOPBACK, Meeting, join
from scopemill.trainer.parts import Share

CPU = torch.device("cpu")
T = TypeVar("T")


def in_parts(parts: int, width: int, work: Callable[[Share], T]) -> list[T]:
    """What each part's work gives, the leader's first. An error of any is raised."""
    meeting = Meeting(LOOPBACK)

    def one(rank: int) -> T:
        with meeting.circle(parts, CPU) if rank == 0 else join(meeting.address, LOOPBACK, rank, parts, CPU) as circle:
            torch.set_num_threads(1)
            return work(Share(circle, width))

    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(one, range(parts)))
