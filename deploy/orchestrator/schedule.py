"""Decide which SAEs train next, as a state machine.

Events go in and decisions come out; it has no Ray and no clock. SAEs of one stream that train together share one read of the
stream. So these SAEs form a *cohort*, which starts together. The next cohort of the stream waits until the first one has ended;
started earlier, it would hold up the first or read alone to catch up. A cohort is divided into *groups*, and each group takes one
slot. A wide SAE, sharded over several slots, is a group of its own. Cohorts start in order of priority, then of the plan. If a
cohort does not fit into the free slots, others of the same priority may go ahead; cohorts of a lower priority may not. Failed
SAEs are retried after all others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scopemill.deploy.plan.cohorts import Entry, cohorts_of, divided, slots_of

State = Literal["waiting", "training", "finished", "stopped", "interrupted", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "interrupted", "failed")


@dataclass(frozen=True)
class SaeOutcome:
    """Record how the training of an SAE ended."""

    state: State
    tries: int
    reason: str = ""


class Schedule:
    """Track every SAE from waiting to its outcome, and choose the cohorts to start.

    ``at_once`` is the number of slots, ``group`` the most SAEs that share a slot, ``streams`` the most streams that are read at the same
    time, and ``retries`` the number of further tries after a failure.
    """

    def __init__(self, entries: Sequence[Entry], at_once: int, streams: int, retries: int, group: int = 1):
        self._at_once, self._streams, self._retries, self._group = at_once, streams, retries, group
        self._entries = {entry.name: entry for entry in entries}
        self._waiting = sorted(entries, key=lambda entry: -entry.priority)  # stable: then in the plan's order
        self.training: dict[str, Entry] = {}
        self.tries: Counter[str] = Counter()
        self.outcomes: dict[str, SaeOutcome] = {}

    @property
    def done(self) -> bool:
        """Return whether every SAE has an outcome."""
        return not self._waiting and not self.training

    def start(self, free: int) -> list[list[list[str]]]:
        """Start the cohorts that fit into ``free`` slots.

        Returns each cohort as its groups of names.
        """
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
        """Note that an SAE in training has done all its steps."""
        self._end(name, "finished")

    def stopped(self, name: str, reason: str) -> None:
        """Note that an SAE in training was stopped early for good."""
        self._end(name, "stopped", reason)

    def interrupted(self, name: str, reason: str) -> None:
        """Note that an SAE cannot train on before lost shards are made again."""
        self._end(name, "interrupted", reason)

    def withdraw(self, name: str, reason: str) -> bool:
        """Stop an SAE that waits for a retry.

        Returns False if the SAE does not wait.
        """
        entry = next((entry for entry in self._waiting if entry.name == name), None)
        if entry:
            self._waiting.remove(entry)
            self.outcomes[name] = SaeOutcome("stopped", self.tries[name], reason)
        return entry is not None

    def retry(self, name: str) -> bool:
        """Let an SAE that failed or was stopped wait again, with all its tries.

        Returns False if the SAE has no such outcome.
        """
        outcome = self.outcomes.get(name)
        if outcome is None or outcome.state not in ("failed", "stopped"):
            return False
        del self.outcomes[name]
        self.tries[name] = 0
        self._waiting.append(self._entries[name])
        return True

    def state_of(self, name: str) -> SaeOutcome:
        """Return an SAE's outcome, or that it waits or trains."""
        if outcome := self.outcomes.get(name):
            return outcome
        return SaeOutcome("training" if name in self.training else "waiting", self.tries[name])

    def failed(self, name: str, reason: str, is_transient: bool) -> bool:
        """Note a failed try, and return whether the SAE will be retried."""
        if not is_transient or self.tries[name] > self._retries:
            self._end(name, "failed", reason)
            return False
        self._waiting.append(self.training.pop(name))
        return True

    def counts(self) -> dict[State, int]:
        """Return the number of SAEs in each state."""
        ended = Counter(outcome.state for outcome in self.outcomes.values())
        counts: dict[State, int] = {"waiting": len(self._waiting), "training": len(self.training)}
        return counts | {state: ended[state] for state in ENDED}

    def _end(self, name: str, state: State, reason: str = "") -> None:
        del self.training[name]
        self.outcomes[name] = SaeOutcome(state, self.tries[name], reason)

    def _next(self, free: int) -> list[Entry]:
        """Return the first cohort that is up next and fits, or an empty list."""
        reading = {entry.stream for entry in self.training.values()}
        if len(reading) >= self._streams:
            return []
        fitting = (c for c in self._up_next() if slots_of(c, self._group) <= free and c[0].stream not in reading)
        return next(fitting, [])

    def _up_next(self) -> list[list[Entry]]:
        """Return the waiting cohorts with the fewest tries and, among these, the highest priority."""
        if not self._waiting:
            return []
        rank = min(map(self._rank, self._waiting))
        first = [entry for entry in self._waiting if self._rank(entry) == rank]
        return cohorts_of(first, self._at_once, self._group)

    def _rank(self, entry: Entry) -> tuple[int, int]:
        return self.tries[entry.name], -entry.priority
