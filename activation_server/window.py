"""Decide what a stream's window loads, sends and drops: a pure state machine.

The window is the run of batches [low, low + capacity) in memory; `low` is the first batch that an attached consumer has
not acknowledged. Batches before `low` are dropped, batches after it are loaded. Consumers move inside the window at their
own pace. A consumer behind the window (it joined late, or lagged too long under ``detach``) is detached: its batches are
read for it alone, until it has caught up. Under ``skip``, a consumer that lags too long loses batches instead. A consumer
that is expected, or lost its connection, keeps its place for a while.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from scopemill.proto.errors import InputError


@dataclass(frozen=True)
class Load:
    """Read batch ``index`` into the window."""

    index: int


@dataclass(frozen=True)
class LoadAlone:
    """Read batch ``index`` for one detached consumer."""

    consumer: str
    index: int


@dataclass(frozen=True)
class Send:
    """Send batch ``index`` to a consumer."""

    consumer: str
    index: int


@dataclass(frozen=True)
class Drop:
    """Drop batch ``index`` from memory."""

    index: int


@dataclass(frozen=True)
class Finish:
    """Tell a consumer that it has every batch."""

    consumer: str


@dataclass(frozen=True)
class Detached:
    """Report that a consumer is detached from now on."""

    consumer: str


@dataclass(frozen=True)
class Skipped:
    """Report that a consumer loses ``count`` batches."""

    consumer: str
    count: int


@dataclass(frozen=True)
class GaveUp:
    """Report that a consumer did not connect in time, and lost its place."""

    consumer: str


Decision = Load | LoadAlone | Send | Drop | Finish | Detached | Skipped | GaveUp


LEAST_BATCHES = 2  # of a window: one is read while the other is sent


def capacity_of(window_bytes: int, batch_bytes: int, stream: str) -> int:
    """Return how many batches a stream's window holds.

    Raises InputError, naming the stream, if they are fewer than two.
    """
    if window_bytes < LEAST_BATCHES * batch_bytes:
        raise InputError(
            f"server.window_mib leaves {window_bytes / 2**20:.3g} MiB to stream {stream}, less than two of its batches of "
            f"{batch_bytes / 2**20:.3g} MiB: raise server.window_mib or lower train.batch_size"
        )
    return window_bytes // batch_bytes


# What a consumer's next batch waits for: credit (the consumer is busy), a read, or the window (a slower consumer).
WaitReason = Literal["credit", "read", "window"]


@dataclass
class Consumer:
    """Hold the state of one consumer of the stream."""

    next: int  # the next batch to send
    stop: int
    connected: bool = False  # if not, its place is kept until `deadline`
    detached: bool = False
    deadline: float = 0.0
    credit: int = 0  # how many sent batches may be unacknowledged
    sent: deque[int] = field(default_factory=deque)  # sent and not acknowledged
    floor: int = 0  # under ``skip``: batches before this one are not kept for it

    @property
    def acknowledged(self) -> int:
        """Return the cursor before which all batches are acknowledged or skipped."""
        return max(self.floor, self.sent[0] if self.sent else self.next)

    @property
    def attached(self) -> bool:
        """Return True if a place is kept: neither detached nor at the stop."""
        return not self.detached and self.acknowledged < self.stop

    @property
    def ready(self) -> bool:
        """Return True if the next batch may be sent as soon as it is loaded."""
        return self.connected and len(self.sent) < self.credit and self.next < self.stop

    def send(self) -> int:
        """Record that the next batch is sent; return its number."""
        self.sent.append(self.next)
        self.next += 1
        return self.sent[-1]

    def skip_to(self, index: int) -> int:
        """Skip unsent batches before ``index``, but never the last; return how many are lost."""
        lost = max(0, min(index, self.stop - 1) - self.next)
        self.next += lost
        self.floor = self.next
        return lost


@dataclass
class Window:
    """Turn events into decisions. Each event method returns the decisions to carry out now."""

    capacity: int  # batches
    lag: Literal["block", "detach", "skip"]
    join_seconds: float
    lag_seconds: float
    consumers: dict[str, Consumer] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    loading: set[int] = field(default_factory=set)
    _reading_alone: set[str] = field(default_factory=set)
    _low: int = 0  # all held batches lie in [_low, _high)
    _high: int = 0
    _first: int = 0  # the first batch still to send; all of [_first, _requested) is held or loading
    _requested: int = 0
    _starving: bool = False
    _starved: float = 0.0  # seconds that others waited for the slowest consumer, minus seconds in which none did
    _noted: float = 0.0

    # Events

    def expect(self, name: str, cursor: int, stop: int, now: float) -> list[Decision]:
        """Keep a place for a consumer that will join."""
        if name not in self.consumers:
            self.consumers[name] = Consumer(cursor, stop, deadline=now + self.join_seconds)
        drops = self._move()  # loads wait for the next event: other expected consumers may begin at earlier batches
        self._note_starvation(now)
        return drops

    def join(self, name: str, cursor: int, stop: int, now: float) -> list[Decision]:
        """Connect a consumer at its cursor; detach it if the window is ahead."""
        low = self.low  # includes the place that was kept for this consumer
        self.consumers.pop(name, None)
        behind = low is not None and cursor < low and self.low is not None
        self.consumers[name] = Consumer(cursor, stop, connected=True, detached=behind)
        notes: list[Decision] = [Detached(name)] if behind else []
        return notes + self._proceed(now)

    def ask(self, name: str, cursor: int, credit: int, now: float) -> list[Decision]:
        """Acknowledge batches before ``cursor``; allow ``credit`` unacknowledged batches from ``cursor`` on."""
        consumer = self.consumers[name]
        while consumer.sent and consumer.sent[0] < cursor:
            consumer.sent.popleft()
        consumer.credit = credit
        finish: list[Decision] = [Finish(name)] if cursor >= consumer.stop else []
        return finish + self._proceed(now)

    def loaded(self, index: int, now: float) -> list[Decision]:
        """Take note that a batch was read for the window."""
        self.loading.discard(index)
        if not self._low <= index < self._high:  # the window has moved on
            return [Drop(index), *self._proceed(now)]
        self.held.add(index)
        return self._proceed(now)

    def loaded_alone(self, name: str, index: int, now: float) -> list[Decision]:
        """Send a batch that was read for one consumer, if the consumer still needs it."""
        self._reading_alone.discard(name)
        consumer = self.consumers.get(name)
        send: list[Decision] = []
        if consumer and consumer.detached and consumer.ready and consumer.next == index:
            send = [Send(name, consumer.send())]
        return send + self._proceed(now)

    def failed(self, index: int, name: str | None) -> None:
        """Note a failed read, for the window or one consumer.

        A later event repeats the error.
        """
        if name is None:
            self.loading.discard(index)
            self._requested = min(self._requested, index)
        else:
            self._reading_alone.discard(name)

    def lost(self, name: str, now: float) -> list[Decision]:
        """Disconnect a consumer, and keep its place for ``join_seconds``."""
        consumer = self.consumers.get(name)
        if consumer is None:
            return []
        consumer.connected, consumer.deadline = False, now + self.join_seconds
        return self._proceed(now)

    def leave(self, name: str, now: float) -> list[Decision]:
        """Remove a consumer and its place."""
        self.consumers.pop(name, None)
        return self._proceed(now)

    def tick(self, now: float) -> list[Decision]:
        """Give up consumers that did not connect in time, and overtake laggards."""
        overdue = [name for name, c in self.consumers.items() if not c.connected and now >= c.deadline]
        for name in overdue:
            del self.consumers[name]
        self._note_starvation(now)
        return [GaveUp(name) for name in overdue] + self._overtake_laggards() + self._proceed(now)

    # State

    @property
    def low(self) -> int | None:
        """Return the first batch that an attached consumer has not acknowledged; None without one."""
        return min((c.acknowledged for c in self._attached()), default=None)

    @property
    def stop(self) -> int:
        """Return the batch before which the attached consumers stop."""
        return max((c.stop for c in self._attached()), default=0)

    def lags(self) -> dict[str, int]:
        """Return how many batches each unfinished consumer is behind the foremost one."""
        foremost = max((c.acknowledged for c in self.consumers.values()), default=0)
        return {name: foremost - c.acknowledged for name, c in self.consumers.items() if c.acknowledged < c.stop}

    def waits(self) -> Counter[WaitReason]:
        """Count the connected consumers by what they wait for."""
        end = (self.low or 0) + self.capacity
        waits: Counter[WaitReason] = Counter()
        for c in self.consumers.values():
            if c.connected and c.next < c.stop:
                waits["credit" if not c.ready else "window" if not c.detached and c.next >= end else "read"] += 1
        return waits

    def _attached(self) -> list[Consumer]:
        return [c for c in self.consumers.values() if c.attached]

    def _proceed(self, now: float) -> list[Decision]:
        """Send, drop and load all that the state allows.

        The cost grows with the number of consumers, not with the window.
        """
        self._reattach()
        decisions = self._move()
        for name, c in self.consumers.items():
            while c.next in self.held and not c.detached and c.ready:
                decisions.append(Send(name, c.send()))
        decisions += self._load()
        for name, c in self.consumers.items():
            if c.detached and c.ready and name not in self._reading_alone:
                self._reading_alone.add(name)
                decisions.append(LoadAlone(name, c.next))
        self._note_starvation(now)
        return decisions

    def _move(self) -> list[Decision]:
        """Move the window to its consumers, and drop the batches outside."""
        attached = self._attached()
        low = min((c.acknowledged for c in attached), default=self._low)
        high = min(low + self.capacity, max((c.stop for c in attached), default=low))
        if low >= self._low and high >= self._high:  # the window moves ahead, as it nearly always does
            gone = [index for index in range(self._low, min(low, self._high)) if index in self.held]
        else:
            gone = [index for index in sorted(self.held) if not low <= index < high]
        self._low, self._high, self._requested = low, high, min(self._requested, high)
        self.held.difference_update(gone)
        return [Drop(index) for index in gone]

    def _load(self) -> list[Decision]:
        """Load missing batches that a consumer still needs, as far as memory allows."""
        first = min((c.next for c in self._attached()), default=self._high)
        self._requested = first if first < self._first else max(first, self._requested)
        self._first = first
        loads: list[Decision] = []
        while self._requested < self._high and len(self.held) + len(self.loading) < self.capacity:
            if self._requested not in self.held and self._requested not in self.loading:
                self.loading.add(self._requested)
                loads.append(Load(self._requested))
            self._requested += 1
        return loads

    def _reattach(self) -> None:
        """Attach consumers that have caught up.

        Without an attached consumer, open the window at the hindmost detached one.
        """
        candidates = [
            c
            for name, c in self.consumers.items()
            if c.detached and c.connected and c.acknowledged < c.stop and name not in self._reading_alone
        ]
        if not candidates:
            return
        low = self.low
        low = min(c.acknowledged for c in candidates) if low is None else low
        for c in candidates:
            c.detached = c.acknowledged < low

    def _note_starvation(self, now: float) -> None:
        """Add time in which a consumer waited for the slowest; subtract other time."""
        elapsed, self._noted = now - self._noted, now
        self._starved = max(0.0, self._starved + (elapsed if self._starving else -elapsed))
        attached = self._attached()
        low = min((c.acknowledged for c in attached), default=0)
        self._starving = any(c.ready and c.acknowledged > low and c.next >= low + self.capacity for c in attached)

    def _overtake_laggards(self) -> list[Decision]:
        """Detach the slowest consumers, or skip batches for them, once others have waited ``lag_seconds``."""
        if self.lag == "block" or not self._starving or self._starved < self.lag_seconds:
            return []
        low, foremost = self.low, max(c.acknowledged for c in self._attached())
        laggards = {name: c for name, c in self.consumers.items() if c.attached and c.acknowledged == low}
        self._starved = 0.0
        if self.lag == "skip":
            return [Skipped(name, c.skip_to(foremost)) for name, c in laggards.items()]
        for c in laggards.values():
            c.detached = True
        return [Detached(name) for name in laggards]
