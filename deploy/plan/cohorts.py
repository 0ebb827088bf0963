"""Divide a sweep's SAEs into cohorts, and cohorts into groups.

A cohort shares one read of a stream, and a group shares one trainer.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Entry:
    """Describe one SAE to train, as the schedule knows it."""

    name: str
    stream: Hashable  # the stream that feeds it
    rivals: Hashable = None  # SAEs of the same value stay together where a cohort has to be cut
    priority: int = 0  # SAEs of a larger number start first
    parts: int = 1  # slots that its latents are sharded over


def slots(parts: Sequence[int], group: int) -> int:
    """Count the slots for SAEs of a stream, given the parts of each.

    Up to ``group`` SAEs of one part share a slot.
    """
    wide = [n for n in parts if n > 1]
    return sum(wide) - -(len(parts) - len(wide)) // group


def divided(cohort: list[Entry], group: int) -> list[list[str]]:
    """Divide a cohort into as few and as equal groups as possible.

    Each wide SAE is a group alone. The plan orders SAEs by width, so every n-th SAE goes to a group: each group gets some of
    every width.
    """
    wide, others = ([entry.name for entry in cohort if (entry.parts > 1) == so] for so in (True, False))
    groups = slots([1] * len(others), group)
    return [[name] for name in wide] + [others[first::groups] for first in range(groups)]


def cohorts_of(entries: Sequence[Entry], at_once: int, group: int) -> list[list[Entry]]:
    """Return the cohorts of all streams, stream by stream, in the entries' order."""
    return [cohort for cohorts in _cohorts(entries, at_once, group) for cohort in cohorts]


def streams_at_once(entries: Sequence[Entry], at_once: int, group: int = 1) -> int:
    """Return the most streams open at once when cohorts fill so many slots.

    As many windows are open as streams.
    """
    free, streams = at_once, 0
    for smallest in sorted(min(slots_of(cohort, group) for cohort in cohorts) for cohorts in _cohorts(entries, at_once, group)):
        free -= smallest
        streams += free >= 0
    return max(1, streams)


def slots_of(cohort: list[Entry], group: int) -> int:
    """Count the slots that a cohort takes."""
    return slots([entry.parts for entry in cohort], group)


def _cohorts(entries: Sequence[Entry], at_once: int, group: int) -> list[list[list[Entry]]]:
    """Return the cohorts of each stream."""
    by_stream: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        by_stream.setdefault(entry.stream, []).append(entry)
    return [_cut(of_stream, at_once, group) for of_stream in by_stream.values()]


def _cut(entries: list[Entry], most: int, group: int) -> list[list[Entry]]:
    """Cut entries into cohorts of at most so many slots; a cut falls between groups of rivals where possible."""
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
