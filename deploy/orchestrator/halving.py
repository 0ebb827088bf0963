"""Successive halving: which SAEs are outdone by their rivals, as a pure function of the histories at a rung.

Rivals have the same hooks, width and recipe, and differ in how sparse they are: together they are a frontier of L0 against FVU. One
that lies behind it, because a rival has no more latents active and no more error, teaches nothing that the others do not.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Point(NamedTuple):
    """What counts of a history's row."""

    l0: float
    fvu: float


@dataclass(frozen=True)
class Verdict:
    """A rung is decided: who of the rivals stops, and by whom each of them is outdone."""

    rivals: str
    step: int
    stopped: dict[str, tuple[str, ...]]
    points: dict[str, Point]  # of all who were compared


class Halving:
    """``know`` and ``gone`` tell what has become of SAEs; ``verdicts`` decides each rung once, as soon as all its rivals are known.

    ``rivals`` names the groups; ``steps`` are the rungs; ``decided`` are the rungs of groups that an earlier run decided.
    """

    def __init__(self, rivals: dict[str, list[str]], steps: tuple[int, ...], keep: float, decided: Iterable[tuple[str, int]] = ()):
        self.steps, self._rivals, self._keep = steps, rivals, keep
        self._decided = set(decided)
        self._points: dict[str, dict[int, Point]] = {name: {} for names in rivals.values() for name in names}
        self._last_step: dict[str, int] = {}  # of those that are gone

    def know(self, name: str, step: int, point: Point) -> None:
        self._points[name][step] = point

    def gone(self, name: str, step: int) -> None:
        """It takes part in no rung after ``step``: it was stopped there, or failed."""
        self._last_step[name] = min(step, self._last_step.get(name, step))

    def verdicts(self) -> list[Verdict]:
        decided = []
        for rivals, names in self._rivals.items():
            for step in self.steps:
                if (rivals, step) in self._decided:
                    continue
                present = [name for name in names if self._last_step.get(name, step) >= step]
                if not all(step in self._points[name] for name in present):
                    break
                points = {name: self._points[name][step] for name in present}
                stopped = outdone(points, self._keep)
                for name in stopped:
                    self.gone(name, step)
                self._decided.add((rivals, step))
                decided.append(Verdict(rivals, step, stopped, points))
        return decided


def outdone(points: dict[str, Point], keep: float) -> dict[str, tuple[str, ...]]:
    """Whom to stop, and by whom each is dominated: those first whom most rivals dominate; at least ``ceil(keep * n)`` go on."""
    by = {name: tuple(sorted(rival for rival, other in points.items() if dominates(other, point))) for name, point in points.items()}
    worst = sorted((name for name in by if by[name]), key=lambda name: (-len(by[name]), -points[name].fvu, name))
    at_most = len(points) - math.ceil(keep * len(points) - 1e-9)
    return {name: by[name] for name in worst[:at_most]}


def dominates(one: Point, other: Point) -> bool:
    """Both numbers are lower or equal, and one of them is lower. What is not a number neither dominates nor is dominated."""
    return one.l0 <= other.l0 and one.fvu <= other.fvu and one != other
