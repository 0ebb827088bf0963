"""The schedule of a sweep: cohorts by priority, never too many at once, one outcome per SAE; against a model that only counts."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scopemill.deploy.orchestrator.schedule import Schedule
from scopemill.deploy.plan.cohorts import Entry, streams_at_once


def entries(**sizes: int) -> list[Entry]:
    """Return the given number of SAEs of each stream: a0, a1, ... of stream a."""
    return [Entry(f"{stream}{i}", stream) for stream, size in sizes.items() for i in range(size)]


def names(stream: str, *numbers: int) -> list[list[str]]:
    """Return a cohort in which each SAE has its own slot."""
    return [[f"{stream}{i}"] for i in numbers]


def test_saes_of_a_stream_start_together_and_small_cohorts_side_by_side():
    schedule = Schedule(entries(a=3, b=2, c=2), at_once=5, streams=5, retries=0)
    assert schedule.start(5) == [names("a", 0, 1, 2), names("b", 0, 1)]
    assert schedule.start(0) == []
    schedule.finished("a0")
    assert schedule.start(1) == [], "part of a cohort does not start"
    schedule.finished("b0")
    assert schedule.start(2) == [names("c", 0, 1)]


def test_no_more_streams_are_read_at_once_than_there_are_windows_for():
    schedule = Schedule(entries(a=1, b=1, c=1), at_once=3, streams=2, retries=0)
    assert schedule.start(3) == [names("a", 0), names("b", 0)]
    schedule.finished("b0")
    assert schedule.start(2) == [names("c", 0)]


def test_a_cohort_larger_than_the_cap_is_cut_and_its_parts_follow_one_another():
    schedule = Schedule(entries(a=5, b=1), at_once=2, streams=2, retries=0)
    assert schedule.start(2) == [names("a", 0, 1)]
    schedule.finished("a0")
    assert schedule.start(1) == [names("b", 0)], "the rest of a stream would hold up the trainers that read it"
    schedule.finished("a1")
    assert schedule.start(1) == [names("a", 4)]


def test_rivals_are_not_cut_apart_where_they_fit():
    rivals = [Entry(f"{group}{i}", "s", rivals=group) for group in "xyz" for i in range(3)]
    assert Schedule(rivals, at_once=7, streams=1, retries=0).start(7) == [names("x", 0, 1, 2) + names("y", 0, 1, 2)]
    assert Schedule(rivals, at_once=2, streams=1, retries=0).start(2) == [names("x", 0, 1)]


def test_a_lower_priority_waits_even_where_it_would_fit_and_an_equal_one_goes_ahead():
    low, high = Entry("low", "s"), [Entry(f"high{i}", "t", priority=1) for i in range(2)]
    single = Entry("single", "u", priority=1)
    schedule = Schedule([low, *high, single], at_once=2, streams=2, retries=0)
    assert schedule.start(1) == [[["single"]]]
    assert schedule.start(1) == []
    schedule.finished("single")
    assert schedule.start(2) == [names("high", 0, 1)]


def test_groups_share_slots_and_are_as_large_as_each_other():
    schedule = Schedule(entries(a=7, b=4), at_once=4, streams=2, retries=0, group=3)
    a, b = schedule.start(5)
    assert a == [["a0", "a3", "a6"], ["a1", "a4"], ["a2", "a5"]], "the plan's order is by width: each group has some of all widths"
    assert b == [["b0", "b2"], ["b1", "b3"]]
    assert [len(c) for c in Schedule(entries(a=7), at_once=2, streams=1, retries=0, group=3).start(2)] == [2], "the last one waits"


def test_a_wide_sae_takes_its_slots_alone_and_cohorts_are_cut_by_slots():
    wide = [Entry(f"wide{i}", "a", parts=3) for i in range(2)]
    schedule = Schedule(entries(a=3, b=1) + wide, at_once=5, streams=2, retries=0, group=2)
    assert schedule.start(2) == [names("b", 0)], "all of a cohort start together, or none"
    schedule.finished("b0")
    assert schedule.start(5) == [[["wide0"], ["a0", "a2"], ["a1"]]]
    for name in ("wide0", "a0", "a2", "a1"):
        assert schedule.start(2) == [], "the next cohort of the stream waits for all of this one"
        schedule.finished(name)
    assert schedule.start(3) == [[["wide1"]]]


def test_transient_failures_are_retried_after_all_others_and_permanent_ones_are_not():
    schedule = Schedule(entries(a=2, b=1, c=1), at_once=2, streams=2, retries=1)
    schedule.start(2)
    assert schedule.failed("a0", "the process died", is_transient=True)
    assert not schedule.failed("a1", "bad input", is_transient=False)
    assert schedule.start(2) == [names("b", 0), names("c", 0)]
    schedule.finished("b0")
    assert schedule.start(1) == [names("a", 0)]
    assert not schedule.failed("a0", "the process died again", is_transient=True)
    schedule.stopped("c0", "dominated")
    assert schedule.done
    outcomes = {name: (outcome.state, outcome.tries, outcome.reason) for name, outcome in schedule.outcomes.items()}
    assert outcomes == {
        "a0": ("failed", 2, "the process died again"),
        "a1": ("failed", 1, "bad input"),
        "b0": ("finished", 1, ""),
        "c0": ("stopped", 1, "dominated"),
    }


@pytest.mark.parametrize(
    ("sizes", "at_once", "group", "wanted"),
    [
        ((20,) * 25, 32, 1, 1), ((20,) * 25, 40, 1, 2), ((20,) * 25, 16, 1, 4), ((1,) * 200, 16, 1, 16), ((3, 1), 16, 1, 2),
        ((50,), 16, 1, 1), ((20,) * 25, 16, 8, 5), ((20,) * 25, 16, 20, 16),
    ],
)  # fmt: skip
def test_as_many_windows_are_needed_as_streams_fit_the_slots(sizes, at_once, group, wanted):
    several = entries(**{f"s{i}-": size for i, size in enumerate(sizes)})
    assert streams_at_once(several, at_once, group) == wanted


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60), at_once=st.integers(1, 40), group=st.integers(1, 9), data=st.data())
def test_with_those_windows_the_schedule_never_waits_for_one_at_first(sizes, at_once, group, data):
    several = entries(**{f"s{i}-": size for i, size in enumerate(sizes)})
    parts = data.draw(st.lists(st.integers(1, at_once), max_size=len(several)))
    several = [replace(one, parts=n) for one, n in zip(several, parts, strict=False)] + several[len(parts) :]
    unbounded = Schedule(several, at_once, streams=10**6, retries=0, group=group)
    assert len(unbounded.start(at_once)) <= streams_at_once(several, at_once, group)


class Sweep(RuleBasedStateMachine):
    """Run any sweep with any order of events. The model holds the SAEs, the number of starts and the outcome of each."""

    @initialize(
        drawn=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2), st.integers(-3, 4)), min_size=1, max_size=25),
        at_once=st.integers(1, 8), streams=st.integers(1, 4), retries=st.integers(0, 2), group=st.integers(1, 4),
    )  # fmt: skip
    def begin(self, drawn, at_once, streams, retries, group):
        self.entries = {
            f"sae{i}": Entry(f"sae{i}", stream, rivals, priority, min(max(parts, 1), at_once))
            for i, (stream, rivals, priority, parts) in enumerate(drawn)
        }
        self.at_once, self.streams, self.retries, self.group = at_once, streams, retries, group
        self.schedule = Schedule(list(self.entries.values()), at_once, streams, retries, group)
        self.training: set[str] = set()
        self.group_of: dict[str, tuple[str, ...]] = {}
        self.starts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.ended: dict[str, str] = {}

    @property
    def waiting(self) -> set[str]:
        return self.entries.keys() - self.training - self.ended.keys()

    @property
    def slots(self) -> int:
        """Return the slots in use: a group keeps its slot, and a wide SAE its slots, until the last SAE of the group has ended."""
        return sum(self.entries[group[0]].parts for group in {self.group_of[name] for name in self.training})

    def rank(self, name: str) -> tuple[int, int]:
        return self.starts[name], -self.entries[name].priority

    @rule(free=st.integers(0, 8))
    def start(self, free):
        free = min(free, self.at_once - self.slots)
        waiting, reading = set(self.waiting), {self.entries[name].stream for name in self.training}
        cohorts = self.schedule.start(free)
        self.group_of |= {name: tuple(group) for groups in cohorts for group in groups for name in group}
        assert sum(self.entries[group[0]].parts for groups in cohorts for group in groups) <= free
        for groups in cohorts:
            cohort = [name for group in groups for name in group]
            assert all(1 <= len(group) <= self.group for group in groups)
            alone = [group for group in groups if any(self.entries[name].parts > 1 for name in group)]
            assert all(len(group) == 1 for group in alone), "a wide SAE shares its slots with no other"
            assert len(groups) - len(alone) == -(-(len(cohort) - len(alone)) // self.group), "no slot more than needed"
            assert len({self.entries[name].stream for name in cohort}) == 1
            assert self.entries[cohort[0]].stream not in reading, "no SAE joins a stream late"
            reading.add(self.entries[cohort[0]].stream)
            assert set(cohort) <= waiting, "no SAE starts that trains or has ended"
            assert len({self.rank(name) for name in cohort}) == 1
            assert all(self.rank(cohort[0]) <= self.rank(name) for name in waiting), "no SAE with a better rank was waiting"
            waiting -= set(cohort)
            self.training |= set(cohort)
            self.starts.update(cohort)

    @rule(data=st.data(), how=st.sampled_from(["finished", "stopped", "failed", "lost"]))
    def end(self, data, how):
        if not self.training:
            return
        name = data.draw(st.sampled_from(sorted(self.training)))
        self.training.remove(name)
        if how == "finished":
            self.schedule.finished(name)
            self.ended[name] = how
        elif how == "stopped":
            self.schedule.stopped(name, "dominated")
            self.ended[name] = how
        else:
            self.failures[name] += 1
            again = self.schedule.failed(name, "a reason", is_transient=how == "lost")
            assert again == (how == "lost" and self.failures[name] <= self.retries)
            if not again:
                self.ended[name] = "failed"

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "schedule"):
            return
        assert self.slots <= self.at_once and len(self.training) <= self.at_once * self.group
        assert len({self.entries[name].stream for name in self.training}) <= self.streams
        assert self.schedule.training.keys() == self.training
        assert {name: outcome.state for name, outcome in self.schedule.outcomes.items()} == self.ended
        assert sum(self.schedule.counts().values()) == len(self.entries)

    def teardown(self):
        """From any state, with all slots free again and again, every SAE gets an outcome."""
        if not hasattr(self, "schedule"):
            return
        while not self.schedule.done:
            self.start(self.at_once)
            assert self.training, "SAEs wait, none trains, and all slots are free"
            for name in sorted(self.training):
                self.schedule.finished(name)
                self.ended[name] = "finished"
            self.training.clear()
        assert self.ended.keys() == self.entries.keys()
        assert all(1 <= self.starts[name] <= self.retries + 1 for name in self.entries)


TestSweep = Sweep.TestCase
TestSweep.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
