"""Rolling mode's bound, as a state machine: shards are made a bounded number ahead of the trainers and deleted behind them.

A *position* counts shards in the order in which trainers need them, epoch after epoch (`Order.shard_at`). What matters are the
positions [low, low + ahead): `low` is the first that some trainer may still need, by its newest checkpoint. A shard's bytes are
a pure function of the plan, so one that is needed again, in the next epoch or by a trainer that comes late, is made again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Rolling:
    """No I/O, no clock: events in, decisions out. ``shard_at`` gives the shard at a position."""

    shard_at: Callable[[int], int]
    ahead: int  # shards that may lie on disk, those being written included
    end: int  # nobody needs this position, or one after it
    made: set[int] = field(default_factory=set)  # shards that are committed
    making: set[int] = field(default_factory=set)
    low: int = 0

    def passed(self, low: int) -> list[int]:
        """Trainers need nothing before position ``low`` (it may also move back); returns the shards to delete."""
        self.low = min(low, self.end)
        return self._drop()

    def claim(self) -> int | None:
        """The shard that a free harvester is to make now: the nearest that is missing, as far as there is room."""
        if len(self.made) + len(self.making) >= self.ahead:
            return None
        shard = next((s for s in self._needed() if s not in self.made and s not in self.making), None)
        if shard is not None:
            self.making.add(shard)
        return shard

    def commit(self, shard: int) -> list[int]:
        """A shard is committed; returns the shards to delete: itself, if nobody needs it any more."""
        self.making.discard(shard)
        self.made.add(shard)
        return self._drop()

    def failed(self, shard: int) -> None:
        """A shard could not be made: it may be claimed again."""
        self.making.discard(shard)

    @property
    def done(self) -> bool:
        """Whether everything that will be needed is there."""
        return all(shard in self.made for shard in self._needed()) and self.low + self.ahead >= self.end

    def _needed(self) -> list[int]:
        """Shards that are needed, the nearest first, and each once."""
        return list(dict.fromkeys(self.shard_at(p) for p in range(self.low, min(self.low + self.ahead, self.end))))

    def _drop(self) -> list[int]:
        gone = sorted(self.made.difference(self._needed()))
        self.made.difference_update(gone)
        return gone
