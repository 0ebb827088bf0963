"""Decide which shards to make and which to delete: rolling mode's state machine.

Shards are made a bounded number ahead of the trainers, and deleted once all trainers passed them.

A *position* counts shards in the order in which trainers read them, epoch after epoch (`Order.shard_at`). The window is the
positions [low, low + ahead). `low` is the first position that some trainer may still read, by its newest checkpoint. A shard's
bytes are a pure function of the plan, so a deleted shard can be made again: for the next epoch, or for a late trainer.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field


@dataclass
class Rolling:
    """Decide which shards to make and delete, without I/O or clock."""

    shard_at: Callable[[int], int]  # the shard at a position
    ahead: int  # the most shards on disk, including shards being written
    end: int  # no trainer reads this position or a later one
    made: set[int] = field(default_factory=set)  # committed shards
    making: set[int] = field(default_factory=set)  # shards claimed by harvesters
    low: int = 0

    def passed(self, low: int) -> list[int]:
        """Record that no trainer needs a position before ``low``, and return the shards to delete.

        ``low`` may also move back, for a trainer that starts late.
        """
        self.low = min(low, self.end)
        return self._drop()

    def claim(self) -> int | None:
        """Claim the nearest missing shard for a harvester; None without room or need."""
        if len(self.made) + len(self.making) >= self.ahead:
            return None
        shard = next((s for s in self._needed() if s not in self.made and s not in self.making), None)
        if shard is not None:
            self.making.add(shard)
        return shard

    def commit(self, shard: int) -> list[int]:
        """Record that a shard is committed, and return the shards to delete.

        The new shard is among them if no trainer needs it any more.
        """
        self.making.discard(shard)
        self.made.add(shard)
        return self._drop()

    def keep(self, committed: Collection[int]) -> None:
        """Forget the shards that are not committed any more: a reader found them damaged."""
        self.made.intersection_update(committed)

    def failed(self, shard: int) -> None:
        """Record that making a shard failed, so that it can be claimed again."""
        self.making.discard(shard)

    @property
    def done(self) -> bool:
        """Return True if every shard that trainers still need is committed."""
        return all(shard in self.made for shard in self._needed()) and self.low + self.ahead >= self.end

    def _needed(self) -> list[int]:
        """Return the shards in the window, nearest first, each once."""
        return list(dict.fromkeys(self.shard_at(p) for p in range(self.low, min(self.low + self.ahead, self.end))))

    def _drop(self) -> list[int]:
        gone = sorted(self.made.difference(self._needed()))
        self.made.difference_update(gone)
        return gone
