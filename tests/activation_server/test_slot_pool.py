"""A slot is filled anew only when nobody can be reading it, and comes back in the end, whatever the trainers do."""

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scopemill.activation_server.slot_pool import Slot, SlotPool

NAMES = st.sampled_from("abc")


@dataclass
class Frame:
    done: bool = False


class Lending(RuleBasedStateMachine):
    """Against a model that knows, of each slot, what it holds and who still needs it."""

    def __init__(self):
        super().__init__()
        self.slots = SlotPool(lambda n: Slot(memoryview(bytearray(8)), np.zeros(1, np.uint64), n))
        self.index = 0
        self.held: dict[int, Slot] = {}
        self.frames: list[tuple[Slot, Frame]] = []
        self.lent: dict[tuple[str, int], Slot] = {}
        self.all: set[Slot] = set()

    def in_use(self) -> set[Slot]:
        return {*self.held.values(), *self.lent.values(), *(slot for slot, frame in self.frames if not frame.done)}

    @rule()
    def take(self):
        used, known = self.in_use(), {slot: int(slot.generation[0]) for slot in self.all}
        slot = self.slots.take()
        assert slot not in used
        assert int(slot.generation[0]) == known.get(slot, 0) + 1  # who reads on all the same can see it
        self.all.add(slot)
        self.held[self.index] = slot
        self.index += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), name=NAMES)
    def lend(self, data, name):
        index = data.draw(st.sampled_from(sorted(self.held)))
        self.slots.lend(self.held[index], name, index)
        self.lent[name, index] = self.held[index]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def send(self, data):
        slot, frame = self.held[data.draw(st.sampled_from(sorted(self.held)))], Frame()
        slot.sending.append(frame)
        self.frames.append((slot, frame))

    @precondition(lambda self: self.frames)
    @rule(data=st.data())
    def a_frame_leaves(self, data):
        self.frames.pop(data.draw(st.integers(0, len(self.frames) - 1)))[1].done = True

    @rule(name=NAMES, back=st.integers(-2, 6))
    def ask(self, name, back):
        self.slots.end_loans(name, self.index - back)
        self.lent = {(n, i): slot for (n, i), slot in self.lent.items() if n != name or i >= self.index - back}

    @rule(name=NAMES)
    def leave(self, name):
        self.slots.end_all_loans(name)
        self.lent = {(n, i): slot for (n, i), slot in self.lent.items() if n != name}

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data):
        self.slots.drop(self.held.pop(data.draw(st.sampled_from(sorted(self.held)))))

    @rule()
    def recycle(self):
        waits = self.slots.recycle()
        assert set(self.slots.free) == self.all - self.in_use()
        assert waits == any(not frame.done for slot, frame in self.frames if slot not in self.held.values())

    @invariant()
    def every_slot_is_in_one_place(self):
        places = [*self.slots.free, *self.slots.dropped, *self.held.values()]
        assert len(places) == len(set(places)) == self.slots.count == len(self.all)


TestLending = Lending.TestCase
TestLending.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
