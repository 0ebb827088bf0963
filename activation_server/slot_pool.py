"""A stream's memory, as a state machine without sockets: slots of one batch each, used again once nobody reads them."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Sending(Protocol):
    """A frame on its way, such as ZeroMQ's MessageTracker."""

    @property
    def done(self) -> bool: ...


@dataclass(eq=False)
class Slot:
    memory: memoryview
    generation: np.ndarray  # (1,) uint64: how often it has been filled; in shared memory for a slot of the ring
    place: int | None = None  # in the ring; None: its bytes go through the socket
    sending: list[Sending] = field(default_factory=list)  # frames that refer to it
    readers: int = 0  # trainers of this host that may be reading it

    @property
    def idle(self) -> bool:
        self.sending = [one for one in self.sending if not one.done]
        return not self.sending and not self.readers


class Slots:
    """Slots are taken, filled, sent or lent, dropped, and free again once the last frame has left and the last loan is over."""

    def __init__(self, make: Callable[[int], Slot]):
        """``make(n)`` makes the n-th slot, counted from 0."""
        self._make = make
        self.count = 0
        self.free: list[Slot] = []
        self.dropped: list[Slot] = []
        self._loans: dict[str, dict[int, Slot]] = defaultdict(dict)  # by consumer and batch

    def take(self) -> Slot:
        """A slot to be filled. How many there are is bounded by the window's capacity and the consumers' credit."""
        if not self.free:
            self.recycle()  # what was dropped a moment ago: the window has jumped
        if self.free:
            slot = self.free.pop()
        else:
            slot, self.count = self._make(self.count), self.count + 1
        slot.generation += 1
        return slot

    def lend(self, slot: Slot, consumer: str, index: int) -> None:
        """A trainer of this host was told where batch ``index`` lies."""
        if index not in self._loans[consumer]:
            self._loans[consumer][index] = slot
            slot.readers += 1

    def passed(self, consumer: str, cursor: int) -> None:
        """A consumer has done with all batches before its cursor."""
        for index in [i for i in self._loans.get(consumer, ()) if i < cursor]:
            self._loans[consumer].pop(index).readers -= 1

    def returned(self, consumer: str) -> None:
        """A consumer has left or is lost. If it reads on, it sees by the generation that a slot was filled anew."""
        for slot in self._loans.pop(consumer, {}).values():
            slot.readers -= 1

    def drop(self, slot: Slot) -> None:
        """Nobody will be sent what it holds any more."""
        self.dropped.append(slot)

    def recycle(self) -> bool:
        """Take back what nobody reads any more. True if a frame is still on its way, of which no event tells that it has left."""
        still = []
        for slot in self.dropped:
            (self.free if slot.idle else still).append(slot)
        self.dropped = still
        return any(slot.sending for slot in still)
