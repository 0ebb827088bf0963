"""Which SAEs are trained next, as a state machine: events in, decisions out, no Ray, no clock.

SAEs of one stream that train together share one read of it, so they form a *cohort* that starts together. Another cohort of
that stream waits until the first has ended: it would hold the first up, or read alone until it has caught up. A cohort is
divided into *groups*, each of which takes one slot; a wide SAE, whose latents are divided over several slots, is a group of its own.
Cohorts are started in order of priority, then of the plan: one that does not fit into the free slots is passed by others of its
priority, never by those of a lower one. What failed is tried again after all others.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

State = Literal["waiting", "training", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Entry:
    """One SAE that is to be trained."""

    name: str
    stream: Hashable  # what it reads
    rivals: Hashable = None  # those with the same value are kept together where a cohort has to be cut
    priority: int = 0  # the larger, the sooner
    parts: int = 1  # slots that its latents are divided over


@dataclass(frozen=True)
class Ending:
    """How it went with an SAE, in the end."""

    state: State
    tries: int
    why: str = ""


class Schedule:
    """``start`` says which to start, given free slots; ``finished``, ``stopped`` and ``failed`` tell how each that was started ended.

    ``at_once`` is the number of slots, ``group`` the most SAEs that share one, ``streams`` the most streams that are ever read at
    once, ``retries`` how often one that failed is tried again.
    """

    def __init__(self, entries: Sequence[Entry], at_once: int, streams: int, retries: int, group: int = 1):
        self._at_once, self._streams, self._retries, self._group = at_once, streams, retries, group
        self._waiting = sorted(entries, key=lambda entry: -entry.priority)  # stable: then in the plan's order
        self.training: dict[str, Entry] = {}
        self.tries: Counter[str] = Counter()
        self.endings: dict[str, Ending] = {}

    @property
    def done(self) -> bool:
        return not self._waiting and not self.training

    def start(self, free: int) -> list[list[list[str]]]:
        """The cohorts to start now that so many slots are free, each in its groups. None of them was in training, and all now are."""
        started: list[list[list[str]]] = []
        while cohort := self._next(free):
            groups = divided(cohort, self._group)
            free -= _slots(cohort, self._group)
            started.append(groups)
            for entry in cohort:
                self._waiting.remove(entry)
                self.training[entry.name] = entry
                self.tries[entry.name] += 1
        return started

    def finished(self, name: str) -> None:
        self._end(name, "finished")

    def stopped(self, name: str, why: str) -> None:
        """It was ended early, and is not to go on."""
        self._end(name, "stopped", why)

    def withdraw(self, name: str, why: str) -> bool:
        """The same of one that waits, to be tried again; False if it does not wait."""
        entry = next((entry for entry in self._waiting if entry.name == name), None)
        if entry:
            self._waiting.remove(entry)
            self.endings[name] = Ending("stopped", self.tries[name], why)
        return entry is not None

    def failed(self, name: str, why: str, may_pass: bool) -> bool:
        """A try failed; ``may_pass``: another may go better. Returns whether it will be tried again."""
        if not may_pass or self.tries[name] > self._retries:
            self._end(name, "failed", why)
            return False
        self._waiting.append(self.training.pop(name))
        return True

    def counts(self) -> dict[State, int]:
        ended = Counter(ending.state for ending in self.endings.values())
        return {"waiting": len(self._waiting), "training": len(self.training)} | {s: ended[s] for s in ("finished", "stopped", "failed")}

    def _end(self, name: str, state: State, why: str = "") -> None:
        del self.training[name]
        self.endings[name] = Ending(state, self.tries[name], why)

    def _next(self, free: int) -> list[Entry]:
        """The first cohort of those that are up next which fits; empty if none does."""
        reading = {entry.stream for entry in self.training.values()}
        if len(reading) >= self._streams:
            return []
        fitting = (c for c in self._up_next() if _slots(c, self._group) <= free and c[0].stream not in reading)
        return next(fitting, [])

    def _up_next(self) -> list[list[Entry]]:
        """The cohorts that nothing waiting goes before: of the fewest tries, and among those of the highest priority."""
        if not self._waiting:
            return []
        rank = min(map(self._rank, self._waiting))
        first = [entry for entry in self._waiting if self._rank(entry) == rank]
        return cohorts_of(first, self._at_once, self._group)

    def _rank(self, entry: Entry) -> tuple[int, int]:
        return self.tries[entry.name], -entry.priority


def slots(parts: Sequence[int], group: int) -> int:
    """How many slots it takes to train SAEs of a stream that have so many parts each: up to ``group`` of those of one part share one."""
    wide = [n for n in parts if n > 1]
    return sum(wide) - -(len(parts) - len(wide)) // group


def divided(cohort: list[Entry], group: int) -> list[list[str]]:
    """The groups of a cohort: wide ones alone, the others as few as can be, as large as each other, and each with some of all, as the
    plan orders by width."""
    wide, others = ([entry.name for entry in cohort if (entry.parts > 1) == so] for so in (True, False))
    groups = slots([1] * len(others), group)
    return [[name] for name in wide] + [others[first::groups] for first in range(groups)]


def cohorts_of(entries: Sequence[Entry], at_once: int, group: int) -> list[list[Entry]]:
    """All of them, those of each stream together, in the entries' order."""
    return [cohort for cohorts in _cohorts(entries, at_once, group) for cohort in cohorts]


def streams_at_once(entries: Sequence[Entry], at_once: int, group: int = 1) -> int:
    """The most streams that are read at once when cohorts fill so many slots: as many windows are needed."""
    free, streams = at_once, 0
    for smallest in sorted(min(_slots(cohort, group) for cohort in cohorts) for cohorts in _cohorts(entries, at_once, group)):
        free -= smallest
        streams += free >= 0
    return max(1, streams)


def _slots(cohort: list[Entry], group: int) -> int:
    return slots([entry.parts for entry in cohort], group)


def _cohorts(entries: Sequence[Entry], at_once: int, group: int) -> list[list[list[Entry]]]:
    """Those of each stream."""
    by_stream: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        by_stream.setdefault(entry.stream, []).append(entry)
    return [_cut(of_stream, at_once, group) for of_stream in by_stream.values()]


def _cut(entries: list[Entry], most: int, group: int) -> list[list[Entry]]:
    """Cohorts that take at most so many slots, between rivals where that is possible."""
    cohorts: list[list[Entry]] = [[]]
    for _, together in groupby(entries, key=lambda entry: entry.rivals):
        rivals = list(together)
        if cohorts[-1] and _slots(cohorts[-1] + rivals, group) > most:
            cohorts.append([])
        for entry in rivals:
            if cohorts[-1] and _slots([*cohorts[-1], entry], group) > most:
                cohorts.append([])
            cohorts[-1].append(entry)
    return cohorts
