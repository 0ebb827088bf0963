"""The window against a plain model of it: who may be sent what, what may be dropped, and that nobody waits for ever."""

import random
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scopemill.activation_server.window import Detached, Drop, Finish, GaveUp, Load, LoadAlone, Send, Skipped, Window

JOIN_SECONDS, LAG_SECONDS = 60.0, 20.0
NAMES = ["a", "b", "c", "d"]


class Place:
    """What the model knows of one consumer: what it was sent, what of that has arrived, what it has said so far."""

    def __init__(self, cursor: int, stop: int, connected: bool, deadline: float = 0.0):
        self.stop, self.connected, self.deadline = stop, connected, deadline
        self.told = cursor  # the cursor that it last named, or where it skipped to
        self.received = cursor
        self.sent = cursor  # the next to be sent
        self.on_their_way: list[int] = []  # sent, and not told to have arrived
        self.credit = 0
        self.detached = self.finished = False

    @property
    def ready(self) -> bool:
        return self.connected and len(self.on_their_way) < self.credit and self.sent < self.stop


class WindowMachine(RuleBasedStateMachine):
    @initialize(capacity=st.integers(2, 6), lag=st.sampled_from(["block", "detach", "skip"]))
    def begin(self, capacity, lag):
        self.window = Window(capacity, lag, JOIN_SECONDS, LAG_SECONDS)
        self.capacity, self.lag, self.now = capacity, lag, 1000.0
        self.places: dict[str, Place] = {}
        self.memory: set[int] = set()
        self.loading: set[int] = set()
        self.alone: dict[str, int] = {}
        self.starved_since_then = self.starved_without_a_break = 0.0
        self.reads_at_the_next_event = False  # after a read that failed, and while consumers are announced

    # What the model says.

    def attached(self) -> dict[str, Place]:
        return {name: p for name, p in self.places.items() if not p.detached and p.told < p.stop}

    def low(self) -> int | None:
        return min((p.told for p in self.attached().values()), default=None)

    def starving(self) -> bool:
        low = self.low()
        return any(p.ready and p.told > low and p.sent >= low + self.capacity for p in self.attached().values())

    def obey(self, decisions, read_for: str | None = None) -> list:
        """Carry decisions out in the model, each checked as it comes; ``read_for``: whose private read has just ended."""
        self.reads_at_the_next_event = False
        # Coming back into the window is not announced; leaving it is, by Detached.
        for name, place in self.places.items():
            place.detached = place.detached and (name not in self.window.consumers or self.window.consumers[name].detached)
        for decision in decisions:
            match decision:
                case Send(name, index):
                    place = self.places[name]
                    assert place.connected and index == place.sent, "in order, once, and only to who is there"
                    assert len(place.on_their_way) < place.credit and index < place.stop, "within credit, and up to its stop"
                    if read_for == name:
                        read_for = None
                    else:
                        assert index in self.memory and not place.detached
                        assert index < self.low() + self.capacity, "the slowest holds the others"
                    place.sent += 1
                    place.on_their_way.append(index)
                case Load(index):
                    assert index not in self.memory | self.loading, "nothing is read twice while it is there"
                    self.loading.add(index)
                    assert len(self.memory) + len(self.loading) <= self.capacity
                    attached = self.attached().values()
                    assert min(p.sent for p in attached) <= index < max(p.stop for p in attached), "nobody would want it"
                case Drop(index):
                    self.memory.remove(index)
                    low = self.low()
                    needed = any(p.told <= index < p.stop for p in self.attached().values())
                    assert not needed or index >= low + self.capacity, "a batch is kept until it has arrived everywhere"
                case LoadAlone(name, index):
                    assert name not in self.alone and self.places[name].detached and index == self.places[name].sent
                    self.alone[name] = index
                case Finish(name):
                    assert self.places[name].told == self.places[name].stop
                    self.places[name].finished = True
                case Detached(name):
                    self.places[name].detached = self.window.consumers[name].detached
                case Skipped(name, count):
                    place, foremost = self.places[name], max(p.told for p in self.attached().values())
                    assert count == max(0, min(foremost, place.stop - 1) - place.sent), "up to the foremost one, and never the last"
                    place.sent += count
                    place.told = max(place.told, place.sent)
                case GaveUp(name):
                    place = self.places.pop(name)
                    assert not place.connected and self.now >= place.deadline
        return decisions

    # Consumers

    @rule(name=st.sampled_from(NAMES), cursor=st.integers(0, 12), length=st.integers(0, 15))
    def expect(self, name, cursor, length):
        decisions = self.window.expect(name, cursor, cursor + length, self.now)
        if name not in self.places:
            self.places[name] = Place(cursor, cursor + length, connected=False, deadline=self.now + JOIN_SECONDS)
        self.obey(decisions)
        self.reads_at_the_next_event = True

    @rule(name=st.sampled_from(NAMES), cursor=st.integers(0, 12), length=st.integers(0, 15))
    def join(self, name, cursor, length):
        self._join(name, cursor, cursor + length)

    @rule(name=st.sampled_from(NAMES), back=st.sampled_from([0, 0, 1, 5]))
    def come_back(self, name, back):
        """Reconnect where it is, or restart from an older checkpoint."""
        if place := self.places.get(name):
            self._join(name, max(0, place.received - back), place.stop)

    def _join(self, name, cursor, stop):
        low, old = self.low(), self.places.pop(name, None)
        alone_in_window = self.low() is None
        decisions = self.window.join(name, cursor, stop, self.now)
        self.places[name] = Place(cursor, stop, connected=True)
        behind = low is not None and cursor < low and not alone_in_window
        assert (Detached(name) in decisions) == behind
        if old and not old.detached and old.told < old.stop and cursor >= old.told:
            assert not behind, "its place was kept"
        self.places[name].detached = behind
        self.obey(decisions)

    @rule(name=st.sampled_from(NAMES), take=st.integers(0, 4), credit=st.integers(1, 4))
    def ask(self, name, take, credit):
        place = self.places.get(name)
        if place and place.connected:
            arrived = [place.received, *(index + 1 for index in place.on_their_way if index >= place.received)]
            self._ask(name, place, arrived[min(take, len(arrived) - 1)], credit)

    def _ask(self, name, place, cursor, credit):
        place.received, place.told = cursor, max(place.told, cursor)
        place.on_their_way = [index for index in place.on_their_way if index >= cursor]
        place.credit = credit
        decisions = self.obey(self.window.ask(name, cursor, credit, self.now))
        assert (Finish(name) in decisions) == (cursor >= place.stop)

    @rule(name=st.sampled_from(NAMES), arrives=st.integers(0, 4))
    def lose(self, name, arrives):
        if place := self.places.get(name):
            if place.connected:
                place.connected, place.deadline = False, self.now + JOIN_SECONDS
                place.received = min(place.sent, place.received + arrives)  # it may have got more than it could say
                self.obey(self.window.lost(name, self.now))

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name):
        self.places.pop(name, None)
        self.obey(self.window.leave(name, self.now))

    # Reading, in any order, now and then in vain

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def load(self, data):
        index = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.remove(index)
        self.memory.add(index)
        self.obey(self.window.loaded(index, self.now))

    @precondition(lambda self: self.loading)
    @rule()
    def load_all(self):
        while self.loading:
            index = self.loading.pop()
            self.memory.add(index)
            self.obey(self.window.loaded(index, self.now))

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def fail_to_load(self, data):
        index = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.remove(index)
        self.window.failed(index, None)
        self.reads_at_the_next_event = True

    @precondition(lambda self: self.alone)
    @rule(data=st.data(), succeeds=st.sampled_from([True, True, True, False]))
    def load_alone(self, data, succeeds):
        self._load_alone(data.draw(st.sampled_from(sorted(self.alone))), succeeds)

    def _load_alone(self, name, succeeds=True):
        index = self.alone.pop(name)
        if not succeeds:
            self.window.failed(index, name)
            self.reads_at_the_next_event = True
            return
        place = self.places.get(name)
        wanted = place is not None and place.detached and place.ready and place.sent == index
        decisions = self.window.loaded_alone(name, index, self.now)
        assert not wanted or decisions[0] == Send(name, index)
        self.obey(decisions, read_for=name if wanted else None)

    # Time

    @rule(seconds=st.sampled_from([0.5, 3.0, 8.0, 25.0, 70.0]))
    def time_passes(self, seconds):
        starving = self.starving()
        self.now += seconds
        self.starved_since_then += seconds if starving else 0
        self.starved_without_a_break = self.starved_without_a_break + seconds if starving else 0.0
        attached = {name: p for name, p in self.attached().items() if p.connected or p.deadline > self.now}
        told = {name: p.told for name, p in self.places.items()}
        decisions = self.obey(self.window.tick(self.now))
        assert {d.consumer for d in decisions if isinstance(d, GaveUp)}.isdisjoint(n for n, p in self.places.items() if p.connected)
        assert all(p.connected or p.deadline > self.now for p in self.places.values()), "no place is kept for longer than promised"
        overtaken = [d.consumer for d in decisions if isinstance(d, Detached | Skipped)]
        if overtaken:
            assert {type(d) for d in decisions} & {Detached, Skipped} == {Detached if self.lag == "detach" else Skipped}
            assert self.starved_since_then >= LAG_SECONDS
            assert {told[name] for name in overtaken} == {min(told[name] for name in attached)}
            self.starved_since_then = self.starved_without_a_break = 0.0
        elif self.lag != "block" and starving and self.starving():
            assert self.starved_without_a_break < LAG_SECONDS, "nobody waits longer for a laggard than was promised"

    # What always holds

    @invariant()
    def memory_is_bounded_and_accounted_for(self):
        assert len(self.memory) + len(self.loading) <= self.capacity
        assert self.window.held == self.memory and self.window.loading == self.loading

    @invariant()
    def what_can_be_sent_has_been(self):
        for place in self.places.values():
            assert place.detached or not place.ready or place.sent not in self.memory

    @invariant()
    def only_who_was_announced_is_outside_the_window(self):
        for name, place in self.places.items():
            assert place.detached == self.window.consumers[name].detached

    @invariant()
    def lags_and_waits_are_told_as_they_are(self):
        foremost = max((p.told for p in self.places.values()), default=0)
        assert self.window.lags() == {name: foremost - p.told for name, p in self.places.items() if p.told < p.stop}
        waiting = [p for p in self.places.values() if p.connected and p.sent < p.stop]
        held_back = [p for p in waiting if p.ready and not p.detached and p.sent >= self.low() + self.capacity]
        wanted = {"credit": sum(not p.ready for p in waiting), "window": len(held_back)}
        wanted["read"] = len(waiting) - sum(wanted.values())
        assert self.window.waits() == Counter(wanted)

    @invariant()
    def what_is_wanted_is_on_its_way(self):
        """Who waits, waits for a read, or for memory that a slower one or a read of the past holds."""
        if self.reads_at_the_next_event:
            return
        for name, place in self.places.items():
            if place.detached and place.ready:
                assert name in self.alone
            elif place.ready and len(self.memory) + len(self.loading) < self.capacity:
                assert place.sent in self.loading or place.sent >= self.low() + self.capacity

    def teardown(self):
        """Liveness: once the absent are given up and the present keep asking, everybody gets everything."""
        if not hasattr(self, "window"):
            return
        self.now += JOIN_SECONDS
        self.obey(self.window.tick(self.now))
        for _ in range(400):
            if all(p.finished for p in self.places.values()):
                return
            for name, place in self.places.items():
                if not place.finished:
                    self._ask(name, place, place.on_their_way[-1] + 1 if place.on_their_way else place.received, 2)
            while self.loading:
                index = max(self.loading)
                self.loading.remove(index)
                self.memory.add(index)
                self.obey(self.window.loaded(index, self.now))
            for name in list(self.alone):
                self._load_alone(name)
        raise AssertionError(f"waiting for ever: {self.window}")


TestWindow = WindowMachine.TestCase
TestWindow.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
)


class Mill:
    """A window with consumers that are driven by hand; reads end at once."""

    def __init__(self, capacity=4, lag="block", join_seconds=60.0, lag_seconds=20.0):
        self.window = Window(capacity, lag, join_seconds, lag_seconds)
        self.got: dict[str, list[int]] = {}
        self.loads, self.alone, self.notes = Counter(), Counter(), []

    def do(self, decisions, now):
        for decision in decisions:
            match decision:
                case Send(name, index):
                    self.got.setdefault(name, []).append(index)
                case Load(index):
                    self.loads[index] += 1
                    self.do(self.window.loaded(index, now), now)
                case LoadAlone(name, index):
                    self.alone[name] += 1
                    self.do(self.window.loaded_alone(name, index, now), now)
                case Drop():
                    pass
                case note:
                    self.notes.append(note)

    def expect(self, name, cursor=0, stop=100, now=0.0):
        self.do(self.window.expect(name, cursor, stop, now), now)

    def join(self, name, cursor=0, stop=100, now=0.0):
        self.do(self.window.join(name, cursor, stop, now), now)

    def ask(self, name, cursor, credit=2, now=0.0):
        self.do(self.window.ask(name, cursor, credit, now), now)

    def run(self, name, upto, now=0.0):
        """The consumer asks until it has got what it can of the batches before ``upto``."""
        cursor = -1
        while cursor < (cursor := self.at(name)) and cursor < upto:
            self.ask(name, cursor, min(2, upto - cursor), now)
        return self.at(name)

    def at(self, name):
        return self.window.consumers[name].next

    def tick(self, now):
        self.do(self.window.tick(now), now)


def test_many_consumers_inside_the_window_cost_one_read_of_each_batch():
    chance = random.Random(0)
    mill = Mill(capacity=8)
    names = [str(i) for i in range(10)]
    for name in names:
        mill.expect(name)
    for name in names:
        mill.join(name)
    cursors = dict.fromkeys(names, 0)
    while unfinished := [name for name in names if cursors[name] < 100]:
        name = chance.choice(unfinished)
        mill.ask(name, cursors[name])
        cursors[name] = mill.at(name)
    assert mill.loads == Counter(range(100)) and not mill.alone
    assert all(mill.got[name] == list(range(100)) for name in names)


def test_an_expected_consumer_holds_the_window_until_it_comes():
    mill = Mill(capacity=4)
    mill.expect("late")
    mill.expect("early")
    mill.join("early")
    assert mill.run("early", 100) == 4
    mill.join("late", now=59.9)
    mill.tick(1000.0)
    assert mill.run("early", 100) == 4
    mill.run("late", 2)
    mill.ask("late", 2)  # two have arrived, and so the other may go on by two
    assert mill.run("early", 100) == 6
    assert not mill.alone and not mill.notes and set(mill.loads.values()) == {1}


def test_an_expected_consumer_that_does_not_come_is_given_up_after_join_seconds():
    mill = Mill(capacity=4)
    mill.expect("never")
    mill.join("early")
    mill.tick(59.9)
    assert mill.run("early", 100, 59.9) == 4
    mill.tick(60.0)
    assert mill.run("early", 100, 60.0) == 100
    assert [note for note in mill.notes if note != Finish("early")] == [GaveUp("never")]


def test_a_lost_consumer_comes_back_to_the_place_that_was_kept():
    mill = Mill(capacity=4)
    for name in ("a", "b"):
        mill.join(name)
    mill.ask("b", 0)  # 0 and 1 are sent; 0 alone arrives before the connection breaks
    mill.ask("b", 1)
    mill.do(mill.window.lost("b", 10.0), 10.0)
    assert mill.run("a", 100, 10.0) == 5
    mill.tick(69.9)
    mill.got["b"].clear()
    mill.join("b", cursor=1, now=69.9)
    mill.tick(500.0)
    mill.ask("b", 1, now=500.0)
    assert mill.got["b"] == [1, 2]
    assert mill.run("a", 100, 500.0) == 5
    assert not mill.notes and not mill.alone and set(mill.loads.values()) == {1}


def test_a_lost_consumer_is_given_up_after_join_seconds():
    mill = Mill(capacity=4)
    for name in ("a", "b"):
        mill.join(name)
    mill.do(mill.window.lost("b", 10.0), 10.0)
    mill.tick(69.9)
    assert mill.run("a", 100, 69.9) == 4
    mill.tick(70.0)
    assert mill.run("a", 100, 70.0) == 100
    assert GaveUp("b") in mill.notes


def test_a_consumer_that_restarts_behind_the_window_reads_alone_and_stops_nobody():
    mill = Mill(capacity=4)
    for name in ("a", "b"):
        mill.join(name)
    for upto in range(1, 31):
        mill.run("a", upto)
        mill.run("b", upto)
    mill.do(mill.window.lost("b", 1.0), 1.0)
    mill.join("b", cursor=10, now=2.0)
    assert mill.notes == [Detached("b")]
    mill.run("a", 60, 2.0)
    mill.got["b"].clear()
    assert mill.run("b", 100, 2.0) == 62  # the other has said that it got 58 batches: this one now waits for it as anybody does
    assert mill.got["b"] == list(range(10, 62))
    assert not mill.window.consumers["b"].detached
    assert max(mill.loads.values()) == 1


def test_blocking_is_for_ever_if_the_slow_one_is_there():
    mill = Mill(capacity=4, lag="block")
    mill.join("fast")
    mill.join("stuck")
    assert mill.run("fast", 100) == 4
    for now in range(0, 10_000, 10):
        mill.tick(float(now))
    assert mill.run("fast", 100, 10_000.0) == 4


def test_a_stalled_consumer_is_detached_after_lag_seconds_of_waiting_and_still_gets_everything():
    mill = Mill(capacity=4, lag="detach")
    mill.join("fast")
    mill.join("stalled")
    mill.ask("stalled", 0)
    mill.tick(500.0)  # nobody has waited for it yet
    mill.ask("fast", 4, now=500.0)
    assert mill.run("fast", 100, 500.0) == 4
    mill.tick(519.9)
    assert mill.at("fast") == 4
    mill.tick(520.0)
    assert mill.notes == [Detached("stalled")]
    assert mill.run("fast", 100, 520.0) == 100
    for cursor in range(1, 101):
        mill.ask("stalled", cursor, now=521.0)
    assert mill.got["stalled"] == list(range(100))
    assert max(mill.loads.values()) <= 2


def test_under_skip_a_stalled_consumer_loses_batches_but_never_the_last():
    mill = Mill(capacity=4, lag="skip")
    mill.join("fast")
    mill.join("stalled")
    mill.ask("stalled", 0)  # 0 and 1 are on their way
    assert mill.run("fast", 100) == 4
    mill.tick(0.0)
    mill.tick(20.0)
    assert mill.notes == [Skipped("stalled", 2)]
    now = 20.0
    while mill.run("fast", 100, now) < 100:
        now += 20.0
        mill.tick(now - 20.0)
        mill.tick(now)
    for cursor in (1, 2, 99, 100):
        mill.ask("stalled", cursor, now=now)
    first, second, *later = mill.got["stalled"]
    assert (first, second) == (0, 1) and later == sorted(later) and later[-1] == 99
    assert sum(note.count for note in mill.notes if isinstance(note, Skipped)) + len(mill.got["stalled"]) == 100
    assert max(mill.loads.values()) == 1, "nothing is read for it alone"


def test_each_laggard_has_the_whole_of_lag_seconds():
    mill = Mill(capacity=4, lag="detach")
    for name in ("fast", "slow", "stalled"):
        mill.join(name)
    mill.run("slow", 2)
    mill.ask("slow", 2, credit=1)  # two have arrived, the third is on its way
    mill.run("fast", 100)
    mill.tick(20.0)
    assert mill.notes == [Detached("stalled")]
    assert mill.run("fast", 100, 20.0) == 6
    mill.tick(39.9)
    assert mill.notes == [Detached("stalled")]
    mill.tick(40.0)
    assert mill.notes == [Detached("stalled"), Detached("slow")]


def test_a_consumer_ten_times_slower_is_detached_though_it_moves():
    mill = Mill(capacity=4, lag="detach", lag_seconds=20.0)
    mill.join("fast")
    mill.join("slow")
    for second in range(60):
        mill.tick(float(second))
        mill.run("fast", 1000, float(second))
        if second % 10 == 9:
            mill.run("slow", mill.at("slow") + 1, float(second))
    assert Detached("slow") in mill.notes


def test_consumers_of_one_speed_are_never_detached_though_each_waits_at_times():
    mill = Mill(capacity=4, lag="detach", lag_seconds=20.0)
    mill.join("a", stop=10_000)
    mill.join("b", stop=10_000)
    for second in range(0, 2000, 4):
        mill.run("a", 10_000, float(second))  # a waits for one second in four
        mill.tick(second + 1.0)
        mill.run("b", mill.at("a"), second + 1.0)
        mill.run("a", mill.at("b"), second + 1.0)
        mill.tick(second + 4.0)
    assert not mill.notes


def test_a_consumer_cannot_starve_behind_itself():
    mill = Mill(capacity=2, lag="detach", lag_seconds=1.0)
    mill.join("only")
    mill.ask("only", 0, credit=16)
    for now in range(100):
        mill.tick(float(now))
    assert not mill.notes and mill.got["only"] == [0, 1]


@pytest.mark.parametrize("cursor", [50, 99, 2**62])
def test_claiming_what_was_never_sent_opens_no_credit(cursor):
    mill = Mill(capacity=40)
    mill.join("liar")
    mill.ask("liar", cursor)
    assert mill.got["liar"] == [0, 1]


def test_when_all_are_behind_the_hindmost_opens_the_window_and_reads_are_shared_again():
    mill = Mill(capacity=8)
    mill.join("first", cursor=50, stop=100)
    mill.join("b", cursor=10)
    mill.join("c", cursor=5)
    assert mill.notes == [Detached("b"), Detached("c")]
    mill.do(mill.window.leave("first", 0.0), 0.0)
    assert not any(c.detached for c in mill.window.consumers.values())
    for upto in range(5, 101):
        mill.run("c", upto)
        mill.run("b", upto)
    assert not mill.alone
    assert [mill.loads[i] for i in range(5, 50)] == [1] * 45


def test_the_window_that_made_room_for_one_who_never_came_leaves_no_hole():
    mill = Mill(capacity=2)
    mill.join("b", cursor=1, stop=4)
    mill.ask("b", 1, credit=1)  # 1 and 2 are held
    mill.expect("a", cursor=0)  # 2 has no room any more
    mill.do(mill.window.leave("a", 0.0), 0.0)
    assert mill.run("b", 4) == 4
    assert mill.loads == {1: 1, 2: 2, 3: 1}


def test_what_lies_beyond_every_stop_is_dropped():
    window = Window(8, "block", 60.0, 20.0)
    window.join("long", 0, 100, 0.0)
    window.join("short", 0, 3, 0.0)
    for index in range(8):
        window.loaded(index, 0.0)
    assert window.leave("long", 0.0) == [Drop(index) for index in range(3, 8)]


def test_a_private_read_that_comes_too_late_is_not_sent():
    window = Window(4, "block", 60.0, 20.0)
    window.join("a", 50, 100, 0.0)
    window.join("b", 5, 100, 0.0)
    assert LoadAlone("b", 5) in window.ask("b", 5, 2, 0.0)
    window.join("b", 3, 100, 0.0)
    window.ask("b", 3, 2, 0.0)
    assert window.loaded_alone("b", 5, 0.0) == [LoadAlone("b", 3)]


def test_a_private_read_that_failed_is_tried_again_when_its_consumer_comes_back():
    window = Window(4, "block", 60.0, 20.0)
    window.join("a", 50, 100, 0.0)
    window.join("b", 0, 100, 0.0)
    assert LoadAlone("b", 0) in window.ask("b", 0, 2, 0.0)
    window.failed(0, "b")
    window.lost("b", 0.0)
    window.join("b", 0, 100, 1.0)
    assert LoadAlone("b", 0) in window.ask("b", 0, 2, 1.0)


def test_an_event_costs_the_same_whatever_the_window_holds():
    def lines_run(capacity: int) -> int:
        mill = Mill(capacity=capacity)
        mill.join("a", stop=10**6)
        mill.join("b", stop=10**6)
        mill.run("a", capacity)
        mill.run("b", 10)
        mill.run("a", capacity + 5)
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            mill.window.ask("b", 11, 2, 0.0)
        finally:
            sys.settrace(before)
        return count

    assert lines_run(2000) == lines_run(20)


def test_what_the_window_held_for_one_that_left_is_not_sent_beyond_the_slowest():
    window = Window(2, "block", 60.0, 20.0)
    window.expect("ahead", 11, 13, 0.0)
    window.tick(0.0)
    window.loaded(11, 0.0)
    window.loaded(12, 0.0)
    window.join("behind", 10, 13, 0.0)
    assert window.ask("behind", 10, 3, 0.0) == [LoadAlone("behind", 10)]
    assert window.loaded_alone("behind", 10, 0.0) == [Send("behind", 10), LoadAlone("behind", 11)]
    window.failed(11, "behind")
    assert window.leave("ahead", 0.0) == [Drop(12), Send("behind", 11)], "10 has not arrived yet, and two batches are all there is room for"
    assert window.ask("behind", 11, 3, 0.0) == [Load(12)]
