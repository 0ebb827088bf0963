"""Frontiers of FVU over L0, and what it costs to reach one: plain arithmetic over points."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

BEYOND = 1.2  # so far outside of its ends a frontier is still extended, as a factor of L0


@dataclass(frozen=True)
class Point:
    """A finished SAE: its L0 and FVU on held-out rows, and what its training cost."""

    l0: float
    fvu: float
    rows: float = 0.0
    seconds: float = 0.0


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both L0 and FVU, by rising L0."""
    best: list[Point] = []
    for point in sorted((p for p in points if p.l0 > 0), key=lambda p: (p.l0, p.fvu)):
        if not best or point.fvu < best[-1].fvu:
            best.append(point)
    return best


def fvu_at(points: Iterable[Point], l0: float) -> float | None:
    """FVU at an L0, on the straight lines between the frontier's points in logarithms of both; None too far outside."""
    best = frontier(points)
    if not best or not best[0].l0 / BEYOND <= l0 <= best[-1].l0 * BEYOND:
        return None
    if len(best) == 1:
        return best[0].fvu
    left, right = next(((a, b) for a, b in pairwise(best) if l0 <= b.l0), (best[-2], best[-1]))
    share = math.log(l0 / left.l0) / math.log(right.l0 / left.l0)
    return math.exp((1 - share) * math.log(left.fvu) + share * math.log(right.fvu))


def cost_of(points: Iterable[Point], cost: str, l0: float, fvu: float) -> float | None:
    """The least cost ("rows" or "seconds") so that the SAEs which cost no more reach an FVU at an L0; None: none does."""
    points = list(points)
    for limit in sorted({getattr(p, cost) for p in points}):
        reached = fvu_at([p for p in points if getattr(p, cost) <= limit], l0)
        if reached is not None and reached <= fvu:
            return limit
    return None
