"""Divide a sweep's SAEs into cohorts that share one read of a stream, and cohorts into groups that share one trainer."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Entry:
    """One SAE that is to be trained."""

    name: str
    stream: Hashable  # what it reads
    rivals: Hashable = None  # those with the same value are kept together where a cohort has to be cut
    priority: int = 0  # the larger, the sooner
    parts: int = 1  # slots that its latents are divided over


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
    for smallest in sorted(min(slots_of(cohort, group) for cohort in cohorts) for cohorts in _cohorts(entries, at_once, group)):
        free -= smallest
        streams += free >= 0
    return max(1, streams)


def slots_of(cohort: list[Entry], group: int) -> int:
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
        if cohorts[-1] and slots_of(cohorts[-1] + rivals, group) > most:
            cohorts.append([])
        for entry in rivals:
            if cohorts[-1] and slots_of([*cohorts[-1], entry], group) > most:
                cohorts.append([])
            cohorts[-1].append(entry)
    return cohorts
