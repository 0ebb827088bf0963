"""The window of one stream, as a state machine: events in, decisions out, no sockets, no threads, no clock.

The window is the run of batches [low, low + capacity) held in memory. `low` is the next batch of the slowest consumer
that is attached; batches before it are dropped, batches ahead are loaded. Consumers move inside it at their own pace.
A consumer behind the window (it came late, or lagged too long under ``detach``) is detached: it is read for
alone, until it has caught up. One that is expected, or was lost, keeps its place for a while.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Load:
    """Read batch ``index`` into the window."""

    index: int


@dataclass(frozen=True)
class LoadAlone:
    """Read batch ``index`` for one detached consumer, and send it."""

    consumer: str
    index: int


@dataclass(frozen=True)
class Send:
    consumer: str
    index: int


@dataclass(frozen=True)
class Drop:
    index: int


@dataclass(frozen=True)
class Finish:
    """Tell a consumer that it has had every batch."""

    consumer: str


@dataclass(frozen=True)
class Detached:
    """Take note: this consumer now reads by itself."""

    consumer: str


@dataclass(frozen=True)
class GaveUp:
    """Take note: this consumer never came (back), and its place is free."""

    consumer: str


Decision = Load | LoadAlone | Send | Drop | Finish | Detached | GaveUp


@dataclass
class Consumer:
    next: int  # the next batch to send
    stop: int
    limit: int = 0  # first batch that its credit does not cover
    here: bool = False  # connected; otherwise expected until `deadline`
    detached: bool = False
    deadline: float = 0.0

    @property
    def wants(self) -> bool:
        """Whether the next batch may be sent as soon as it is there."""
        return self.here and self.next < min(self.limit, self.stop)


@dataclass
class Window:
    capacity: int  # batches
    lag: Literal["block", "detach"]
    join_seconds: float
    detach_seconds: float
    consumers: dict[str, Consumer] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    loading: set[int] = field(default_factory=set)
    _reading_alone: set[str] = field(default_factory=set)
    _starving_since: float | None = None

    # Events. Each returns what is to be done now.

    def expect(self, name: str, cursor: int, stop: int, now: float) -> list[Decision]:
        """A consumer will come: keep what it needs until then."""
        if name not in self.consumers:
            self.consumers[name] = Consumer(cursor, stop, deadline=now + self.join_seconds)
        return []

    def join(self, name: str, cursor: int, stop: int, now: float) -> list[Decision]:
        self.consumers.pop(name, None)
        consumer = Consumer(cursor, stop, limit=cursor, here=True)
        low = self.low
        consumer.detached = low is not None and cursor < low
        self.consumers[name] = consumer
        notes: list[Decision] = [Detached(name)] if consumer.detached else []
        return notes + self._proceed(now)

    def ask(self, name: str, cursor: int, credit: int, now: float) -> list[Decision]:
        """What lies before ``cursor`` has arrived, and ``credit`` batches from there on may be on their way."""
        consumer = self.consumers[name]
        consumer.limit = max(consumer.limit, cursor + credit)
        finish: list[Decision] = [Finish(name)] if cursor >= consumer.stop else []
        return finish + self._proceed(now)

    def loaded(self, index: int, now: float) -> list[Decision]:
        self.loading.discard(index)
        self.held.add(index)
        return self._proceed(now)

    def loaded_alone(self, name: str, index: int, now: float) -> list[Decision]:
        """A batch was read for one consumer: it is sent if that one still wants it."""
        self._reading_alone.discard(name)
        consumer = self.consumers.get(name)
        send: list[Decision] = []
        if consumer and consumer.detached and consumer.wants and consumer.next == index:
            send = [Send(name, index)]
            consumer.next += 1
        return send + self._proceed(now)

    def lost(self, name: str, now: float) -> list[Decision]:
        """The consumer's connection broke. Its place is kept for a while: it may come back."""
        consumer = self.consumers.get(name)
        if consumer is None:
            return []
        consumer.here, consumer.deadline = False, now + self.join_seconds
        return self._proceed(now)

    def leave(self, name: str, now: float) -> list[Decision]:
        self.consumers.pop(name, None)
        return self._proceed(now)

    def tick(self, now: float) -> list[Decision]:
        overdue = [name for name, c in self.consumers.items() if not c.here and now >= c.deadline]
        for name in overdue:
            del self.consumers[name]
        return [GaveUp(name) for name in overdue] + self._detach_laggards(now) + self._proceed(now)

    # State

    @property
    def low(self) -> int | None:
        """The next batch of the slowest attached consumer; None without any."""
        return min((c.next for c in self._attached()), default=None)

    def _attached(self) -> list[Consumer]:
        return [c for c in self.consumers.values() if not c.detached and c.next < c.stop]

    def _proceed(self, now: float) -> list[Decision]:
        """Everything that the state allows now: send, drop, load."""
        self._reattach()
        decisions: list[Decision] = []
        for name, c in self.consumers.items():
            while not c.detached and c.wants and c.next in self.held:
                decisions.append(Send(name, c.next))
                c.next += 1
        low = self.low
        ends = [c.stop for c in self._attached()]
        high = min(low + self.capacity, max(ends)) if low is not None else 0
        for index in sorted(self.held):
            if low is None or not low <= index < high:
                self.held.discard(index)
                decisions.append(Drop(index))
        for index in range(low or 0, high):
            if index not in self.held and index not in self.loading and len(self.held) + len(self.loading) < self.capacity:
                self.loading.add(index)
                decisions.append(Load(index))
        for name, c in self.consumers.items():
            if c.detached and c.wants and name not in self._reading_alone:
                self._reading_alone.add(name)
                decisions.append(LoadAlone(name, c.next))
        self._note_starvation(now)
        return decisions

    def _reattach(self) -> None:
        for name, c in self.consumers.items():
            low = self.low
            if c.detached and name not in self._reading_alone and (low is None or c.next >= low):
                c.detached = False

    def _note_starvation(self, now: float) -> None:
        """Since when a consumer has waited at the window's end for the slowest one."""
        low = self.low
        starving = low is not None and any(c.wants and c.next >= low + self.capacity for c in self._attached())
        self._starving_since = (self._starving_since if self._starving_since is not None else now) if starving else None

    def _detach_laggards(self, now: float) -> list[Decision]:
        if self.lag != "detach" or self._starving_since is None or now - self._starving_since < self.detach_seconds:
            return []
        low = self.low
        laggards = [name for name, c in self.consumers.items() if not c.detached and c.next == low and c.next < c.stop]
        for name in laggards:
            self.consumers[name].detached = True
        self._starving_since = None
        return [Detached(name) for name in laggards]
