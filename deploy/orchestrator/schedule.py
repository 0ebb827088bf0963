"""Which SAEs are trained next, as a state machine: events in, decisions out, no Ray, no clock.

SAEs of one stream that train together share one read of it, so they form a *cohort* that starts together. Another cohort of
that stream waits until the first has ended: it would hold the first up, or read alone until it has caught up. A cohort is
divided into *groups*, each of which takes one slot; a wide SAE, whose latents are divided over several slots, is a group of its own.
Cohorts are started in order of priority, then of the plan: one that does not fit into the free slots is passed by others of its
priority, never by those of a lower one. What failed is tried again after all others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scopemill.deploy.plan.cohorts import Entry, cohorts_of, divided, slots_of

State = Literal["waiting", "training", "finished", "stopped", "failed"]


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
            free -= slots_of(cohort, self._group)
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

    def failed(self, name: str, why: str, is_transient: bool) -> bool:
        """A try failed; ``is_transient``: another may go better. Returns whether it will be tried again."""
        if not is_transient or self.tries[name] > self._retries:
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
        fitting = (c for c in self._up_next() if slots_of(c, self._group) <= free and c[0].stream not in reading)
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
