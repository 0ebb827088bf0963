"""The trainer processes of a sweep: each takes one SAE after another."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scopemill.deploy.orchestrator.actor_group import ActorGroup, get


@dataclass(frozen=True, eq=False)
class Slot:
    """Room for an SAE, for a group of them, or for a part of a wide one: a process, and the node that it is on."""

    actor: Any
    node: str


class Pool:
    """Of as many processes as ``group`` has; ``make`` starts another when one has died more often than Ray starts it again."""

    def __init__(self, group: ActorGroup, make: Callable[[], Any]):
        self._group, self._make = group, make
        nodes = get([actor.node.remote() for actor in group.actors])
        self._free = [Slot(actor, node) for actor, node in zip(group.actors, nodes, strict=True)]
        self._coming: dict[Any, tuple[Any, Any]] = {}  # by the call that will name its node: the new actor and the old

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def coming(self) -> list[Any]:
        """Calls that return when a process in place of a dead one is up."""
        return list(self._coming)

    def take(self, wanted: int) -> list[Slot]:
        """Slots on as few nodes as may be: each node that has some of a stream's trainers reads the stream once."""
        nodes = packed(Counter(slot.node for slot in self._free), wanted)
        taken = []
        for slot in list(self._free):
            if nodes[slot.node]:
                nodes[slot.node] -= 1
                self._free.remove(slot)
                taken.append(slot)
        return sorted(taken, key=lambda slot: slot.node)

    def give_back(self, slot: Slot) -> None:
        self._free.append(slot)

    def replace(self, slot: Slot) -> None:
        """The slot's process is gone for good."""
        actor = self._make()
        self._coming[actor.node.remote()] = (actor, slot.actor)

    def welcome(self, ready: Sequence[Any]) -> None:
        """Of those calls that have returned, take the processes in."""
        for ref in [ref for ref in ready if ref in self._coming]:
            actor, old = self._coming.pop(ref)
            self._group.replace(old, actor)
            self._free.append(Slot(actor, get(ref)))


def packed(free: Counter[str], wanted: int) -> Counter[str]:
    """How many slots to take of which node, given how many are free on each: the tightest node that has room for all, else
    the roomiest one and what is left from the others."""
    taken: Counter[str] = Counter()
    while wanted:
        rest = {node: n - taken[node] for node, n in free.items() if n > taken[node]}
        fitting = [node for node, n in rest.items() if n >= wanted]
        node = min(fitting, key=lambda node: (rest[node], node)) if fitting else max(rest, key=lambda node: (rest[node], node))
        taken[node] += min(wanted, rest[node])
        wanted -= min(wanted, rest[node])
    return taken
