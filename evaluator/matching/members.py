"""Choose which SAEs to compare: neighbours on the one axis that differs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from scopemill.proto.hooks import Hook
from scopemill.proto.layout import short_name

Axis = Literal["layer", "site", "width", "architecture", "seed", "sparsity", "recipe"]
ORDERED: tuple[Axis, ...] = ("layer", "width", "sparsity")
UNORDERED: tuple[Axis, ...] = ("seed", "architecture", "recipe")
L0_APART = 1.25  # a ratio of L0 from which two SAEs of unknown coefficients differ in sparsity


@dataclass(frozen=True)
class Member:
    """Describe an SAE among those that are compared."""

    folder: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    architecture: str
    width: int
    seed: Any = None
    sparsity: float | None = None  # the coefficient, or k
    recipe: str = ""  # a digest of all other settings
    l0: float | None = None

    @property
    def name(self) -> str:
        """Return the SAE's path below ``saes/``, or its folder."""
        return short_name(self.folder)

    def along(self, axis: Axis) -> Any:
        """Return the SAE's value on an axis."""
        if axis == "sparsity":
            return self.sparsity if self.sparsity is not None else self.l0
        hooks = [Hook.parse(name) for name in (*self.inputs, *self.outputs)]
        places = {"layer": tuple(hook.layer for hook in hooks), "site": tuple(hook.site for hook in hooks)}
        return places.get(axis, getattr(self, axis, None))


def differing(a: Member, b: Member) -> tuple[Axis, ...]:
    """Return the axes in which two SAEs differ.

    A coefficient of another architecture or recipe says nothing, so sparsity does not count beside them.
    """
    axes = tuple(axis for axis in ("layer", "site", "width", *UNORDERED) if a.along(axis) != b.along(axis))
    if {"architecture", "recipe"} & set(axes):
        return axes
    return (*axes, *(("sparsity",) if _sparsities_differ(a, b) else ()))


def _sparsities_differ(a: Member, b: Member) -> bool:
    if a.sparsity is not None and b.sparsity is not None:
        return a.sparsity != b.sparsity
    return bool(a.l0 and b.l0) and _l0_apart(a, b) > math.log(L0_APART)


def every_pair(members: Sequence[Member]) -> Iterator[tuple[int, int, tuple[Axis, ...]]]:
    """Yield every pair of SAEs with the axes in which they differ."""
    for i, j in combinations(range(len(members)), 2):
        yield i, j, differing(members[i], members[j])


def related_pairs(members: Sequence[Member]) -> list[tuple[int, int, tuple[Axis, ...]]]:
    """Return the pairs of a sweep that are worth comparing.

    They differ in one axis: in seed; in architecture or recipe, with the closest L0; or in layer, width or sparsity, next to each other
    on that axis. Each SAE has a few partners, however many SAEs there are.
    """
    pairs: dict[tuple[int, int], tuple[Axis, ...]] = {}
    for i, member in enumerate(members):
        for axis in (*ORDERED, *UNORDERED):
            for j in _partners(i, members, axis):
                pairs[min(i, j), max(i, j)] = differing(member, members[j])
    return [(i, j, axes) for (i, j), axes in sorted(pairs.items())]


def _partners(i: int, members: Sequence[Member], axis: Axis) -> list[int]:
    """Return the SAEs that differ from one in an axis alone, the next ones on it."""
    own = members[i]
    alone = [j for j, other in enumerate(members) if j != i and differing(own, other) == (axis,)]
    if axis in ORDERED:
        values = [members[j].along(axis) for j in alone]
        if any(value is None for value in (own.along(axis), *values)):
            return alone
        below, above = ([v for v in values if v < own.along(axis)], [v for v in values if v > own.along(axis)])
        steps = {*([max(below)] if below else []), *([min(above)] if above else [])}
        return [j for j, value in zip(alone, values, strict=True) if value in steps]
    if axis == "seed":
        return alone
    by_value: dict[Any, list[int]] = {}
    for j in alone:
        by_value.setdefault(members[j].along(axis), []).append(j)
    return [min(group, key=lambda j: (_l0_apart(own, members[j]), j)) for group in by_value.values()]


def _l0_apart(a: Member, b: Member) -> float:
    return abs(math.log(a.l0 / b.l0)) if a.l0 and b.l0 else math.inf
