"""Ratios of seconds taken in turn, because machines drift: what `make bench` and `make bench-peers` print and keep."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    name: str
    measured: float
    goal: str = ""  # such as "<= 1.3"; empty where there is none
    raw: dict[str, float] = field(default_factory=dict)  # what it was made from; names end in the unit


@dataclass(frozen=True)
class Rounds:
    """Seconds of each of several works, a number for each round."""

    seconds: dict[str, list[float]]

    def ratio(self, one: str, other: str) -> float:
        """The median over rounds of one's seconds over the other's."""
        return statistics.median(a / b for a, b in zip(self.seconds[one], self.seconds[other], strict=True))

    def figure(self, name: str, one: str, other: str, goal: str = "") -> Figure:
        return Figure(name, self.ratio(one, other), goal, {f"{work}, s": statistics.median(self.seconds[work]) for work in (one, other)})


def alternate(works: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> Rounds:
    """Each of the works, which return the seconds that they took: in turn to warm up, and then once in each round."""
    for _ in range(warm_up):
        for work in works.values():
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(work())
    return Rounds(taken)


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """The work, returning the seconds that it takes."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run
