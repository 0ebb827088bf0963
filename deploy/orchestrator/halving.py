"""Decide which SAEs successive halving stops, as a pure function of histories at a rung.

Rivals have the same hooks, width and recipe, and differ in sparsity: together they are a frontier of L0 against FVU. A rival
dominates an SAE if its L0 and FVU are no higher and one of the two is lower. A dominated SAE adds nothing to the frontier.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Point(NamedTuple):
    """Hold the two numbers of a history's row by which rivals are compared."""

    l0: float
    fvu: float


@dataclass(frozen=True)
class Verdict:
    """Record one decided rung.

    It has the SAEs that stop, and the rivals that dominate each of them.
    """

    rivals: str  # the name of the group
    step: int
    stopped: dict[str, tuple[str, ...]]  # by SAE: the rivals that dominate it
    points: dict[str, Point]  # of all SAEs that were compared


class Halving:
    """Decide each rung once, as soon as the points of all its rivals are known.

    ``rivals`` maps a group's name to its SAEs; ``steps`` are the rungs; ``decided`` are (group, step) pairs of an earlier run.
    """

    def __init__(self, rivals: dict[str, list[str]], steps: tuple[int, ...], keep: float, decided: Iterable[tuple[str, int]] = ()):
        self.steps, self._rivals, self._keep = steps, rivals, keep
        self._decided = set(decided)
        self._points: dict[str, dict[int, Point]] = {name: {} for names in rivals.values() for name in names}
        self._last_step: dict[str, int] = {}  # of SAEs that train no further

    def know(self, name: str, step: int, point: Point) -> None:
        """Note an SAE's point at a rung."""
        self._points[name][step] = point

    def gone(self, name: str, step: int) -> None:
        """Leave an SAE that was stopped or failed out of all rungs after ``step``."""
        self._last_step[name] = min(step, self._last_step.get(name, step))

    def verdicts(self) -> list[Verdict]:
        """Return a verdict for each rung that can be decided now."""
        verdicts = []
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
                verdicts.append(Verdict(rivals, step, stopped, points))
        return verdicts


def outdone(points: dict[str, Point], keep: float) -> dict[str, tuple[str, ...]]:
    """Return the SAEs to stop, and for each the rivals that dominate it.

    SAEs with the most dominating rivals stop first. At least ``ceil(keep * n)`` of n SAEs remain.
    """
    by = {name: tuple(sorted(rival for rival, other in points.items() if dominates(other, point))) for name, point in points.items()}
    worst = sorted((name for name in by if by[name]), key=lambda name: (-len(by[name]), -points[name].fvu, name))
    at_most = len(points) - math.ceil(keep * len(points) - 1e-9)
    return {name: by[name] for name in worst[:at_most]}


def dominates(one: Point, other: Point) -> bool:
    """Return whether one point dominates another.

    It does if it is no higher in L0 and FVU, and lower in at least one. A point with NaN neither dominates nor is dominated.
    """
    return one.l0 <= other.l0 and one.fvu <= other.fvu and one != other
