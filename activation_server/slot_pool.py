"""Recycle a stream's memory, in slots of one batch: a state machine without sockets."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Sending(Protocol):
    """Describe a frame that is being sent, such as ZeroMQ's MessageTracker."""

    @property
    def done(self) -> bool:
        """Return True once the frame has been sent."""


@dataclass(eq=False)
class Slot:
    """Hold one batch, the frames that refer to it, and the number of its readers."""

    memory: memoryview
    generation: np.ndarray  # (1,) uint64: number of times that the slot was filled; in shared memory for a shared slot
    place: int | None = None  # in shared memory; None: the bytes go through the socket
    sending: list[Sending] = field(default_factory=list)  # frames that refer to the slot's memory
    readers: int = 0  # trainers of this host that have borrowed the slot

    @property
    def idle(self) -> bool:
        """Return True if no frame and no trainer uses the slot any more."""
        self.sending = [frame for frame in self.sending if not frame.done]
        return not self.sending and not self.readers


class SlotPool:
    """Hand out slots; reuse a dropped slot after its last frame and loan."""

    def __init__(self, make: Callable[[int], Slot]):
        """``make(n)`` makes the n-th slot, counted from 0."""
        self._make = make
        self.count = 0
        self.free: list[Slot] = []
        self.dropped: list[Slot] = []
        self._loans: dict[str, dict[int, Slot]] = defaultdict(dict)  # by consumer and batch

    def take(self) -> Slot:
        """Return a slot to fill.

        The window's capacity and the consumers' credit bound the number of slots.
        """
        if not self.free:
            self.recycle()  # finds slots that were dropped a moment ago, when the window jumped
        if self.free:
            slot = self.free.pop()
        else:
            slot, self.count = self._make(self.count), self.count + 1
        slot.generation += 1
        return slot

    def lend(self, slot: Slot, consumer: str, index: int) -> None:
        """Lend the slot of batch ``index`` to a trainer of this host."""
        if index not in self._loans[consumer]:
            self._loans[consumer][index] = slot
            slot.readers += 1

    def end_loans(self, consumer: str, cursor: int) -> None:
        """End a consumer's loans of batches before its cursor."""
        for index in [i for i in self._loans.get(consumer, ()) if i < cursor]:
            self._loans[consumer].pop(index).readers -= 1

    def end_all_loans(self, consumer: str) -> None:
        """End the loans of a consumer that has left or is lost.

        A lost consumer that still reads notices a refilled slot by its generation.
        """
        for slot in self._loans.pop(consumer, {}).values():
            slot.readers -= 1

    def drop(self, slot: Slot) -> None:
        """Give up a slot; no more frames will refer to it."""
        self.dropped.append(slot)

    def recycle(self) -> bool:
        """Free idle dropped slots; return True if another still waits for a frame.

        The end of a frame causes no event, so the caller must look again.
        """
        busy: list[Slot] = []
        for slot in self.dropped:
            (self.free if slot.idle else busy).append(slot)
        self.dropped = busy
        return any(slot.sending for slot in busy)
