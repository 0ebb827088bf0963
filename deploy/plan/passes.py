"""Plan passes: the hooks that are harvested together.

There are several passes where memory or disk does not hold all hooks at once. Both budgets come down to bytes a row of a pass's
hooks together: for the shards in memory, and for all shards on disk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook

Connection = tuple[Hook, ...]  # hooks whose rows one SAE needs side by side, so they are in one pass
GIB = 2**30


@dataclass(frozen=True)
class Budget:
    """Hold the room that the sweep file gives to the shards of one pass."""

    field: str
    gib: float
    rows: int  # rows of each hook that lie there at once

    @property
    def row_bytes(self) -> float:
        """Return the bytes that one row of all the pass's hooks may take."""
        return self.gib * GIB / self.rows


def plan_passes(
    connections: Sequence[Connection], budgets: Sequence[Budget], row_bytes: Callable[[Sequence[Hook]], int]
) -> list[Connection]:
    """Return the hooks of each pass, in the order of layers.

    Every connection is whole in at least one pass. First fit: connections of the most hooks come first, then connections that end
    at the lowest layer, because a forward pass ends at its last hook. A connection joins the pass that has all its hooks already,
    else the first pass with room. ``row_bytes`` counts the bytes of a row of some hooks together. InputError for a connection
    that exceeds a budget by itself.
    """
    room = min(budget.row_bytes for budget in budgets)
    passes: list[set[Hook]] = []
    for connection in sorted(set(connections), key=lambda hooks: (-len(set(hooks)), max(hooks).layer, hooks)):
        wanted = set(connection)
        if row_bytes(connection) > room:
            raise _too_large(connection, min(budgets, key=lambda budget: budget.row_bytes), row_bytes(connection))
        if any(wanted <= hooks for hooks in passes):
            continue
        chosen = next((hooks for hooks in passes if row_bytes(tuple(hooks | wanted)) <= room), None)
        if chosen is None:
            passes.append(wanted)
        else:
            chosen |= wanted
    in_turn = sorted((tuple(sorted(hooks)) for hooks in passes), key=lambda hooks: (hooks[-1].layer, hooks))
    used = {pass_of(connection, in_turn) for connection in connections}
    return [hooks for number, hooks in enumerate(in_turn) if number in used]


def pass_of(connection: Connection, passes: Sequence[Connection]) -> int:
    """Return the number of the first pass that has all hooks of a connection.

    Passes are numbered from 0.
    """
    return next(number for number, hooks in enumerate(passes) if set(connection) <= set(hooks))


def _too_large(connection: Connection, budget: Budget, row_bytes: int) -> InputError:
    names = ", ".join(hook.name for hook in connection)
    return InputError(
        f"{budget.field}: {budget.gib:g} GiB do not hold the hooks that are harvested together for one SAE: {names} take "
        f"{budget.rows * row_bytes / GIB:.3g} GiB; raise it, or lower {_lowered(budget.field)}"
    )


def _lowered(field: str) -> str:
    return "harvest.tokens" if field == "harvest.disk_gib" else "harvest.rows_per_shard"
