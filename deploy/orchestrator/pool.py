"""Hold the trainer processes of a sweep.

Each process trains one group of SAEs after another.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scopemill.deploy.orchestrator.actor_group import ActorGroup, get


@dataclass(frozen=True, eq=False)
class Slot:
    """Describe one trainer process.

    It has room for an SAE, for a group of SAEs, or for one rank of a wide SAE.
    """

    actor: Any
    node: str


class Pool:
    """Lend the trainers of an actor group, and replace trainers that Ray no longer restarts.

    ``make`` starts a new trainer.
    """

    def __init__(self, group: ActorGroup, make: Callable[[], Any]):
        self._group, self._make = group, make
        nodes = get([actor.node.remote() for actor in group.actors])
        self._free = [Slot(actor, node) for actor, node in zip(group.actors, nodes, strict=True)]
        self._starting: dict[Any, tuple[Any, Any]] = {}  # by the call that returns its node: the new actor and the dead one

    @property
    def free(self) -> int:
        """Return the number of free slots."""
        return len(self._free)

    @property
    def starting(self) -> list[Any]:
        """Return the calls that return once a replacement is up."""
        return list(self._starting)

    def take(self, wanted: int) -> list[Slot]:
        """Take free slots on as few nodes as possible.

        Every node with trainers of a stream reads the stream once.
        """
        nodes = packed(Counter(slot.node for slot in self._free), wanted)
        taken = []
        for slot in list(self._free):
            if nodes[slot.node]:
                nodes[slot.node] -= 1
                self._free.remove(slot)
                taken.append(slot)
        return sorted(taken, key=lambda slot: slot.node)

    def give_back(self, slot: Slot) -> None:
        """Make a slot free again."""
        self._free.append(slot)

    def replace(self, slot: Slot) -> None:
        """Start a trainer in place of a slot's dead process."""
        actor = self._make()
        self._starting[actor.node.remote()] = (actor, slot.actor)

    def add_started(self, ready: Sequence[Any]) -> None:
        """Make a free slot of each replacement whose call is among the ``ready`` ones."""
        for ref in [ref for ref in ready if ref in self._starting]:
            actor, old = self._starting.pop(ref)
            self._group.replace(old, actor)
            self._free.append(Slot(actor, get(ref)))


def packed(free: Counter[str], wanted: int) -> Counter[str]:
    """Return how many slots to take from each node, to use the fewest nodes.

    ``free`` counts the free slots of each node. The tightest node with room for all is taken; where there is none, the roomiest node
    is used up and the rest comes from the others.
    """
    taken: Counter[str] = Counter()
    while wanted:
        rest = {node: n - taken[node] for node, n in free.items() if n > taken[node]}
        fitting = [node for node, n in rest.items() if n >= wanted]
        node = min(fitting, key=lambda node: (rest[node], node)) if fitting else max(rest, key=lambda node: (rest[node], node))
        taken[node] += min(wanted, rest[node])
        wanted -= min(wanted, rest[node])
    return taken
