"""The window of one stream, as a state machine: events in, decisions out, no sockets, no threads, no clock.

The window is the run of batches [low, low + capacity) held in memory. `low` is the first batch that an attached
consumer has not got yet; batches before it are dropped, batches ahead are loaded. Consumers move inside it at their
own pace. A consumer behind the window (it came late, or lagged too long under ``detach``) is detached: it is read for
alone, until it has caught up. Under ``skip`` one that lags too long loses batches instead. One that is expected, or was
lost, keeps its place for a while.
"""

from collections import Counter, deque
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
class Skipped:
    """Take note: this consumer will not get ``count`` batches."""

    consumer: str
    count: int


@dataclass(frozen=True)
class GaveUp:
    """Take note: this consumer never came (back), and its place is free."""

    consumer: str


Decision = Load | LoadAlone | Send | Drop | Finish | Detached | Skipped | GaveUp


# What a consumer's next batch waits for: the consumer itself, which has enough to do; a read; or a slower consumer.
WaitReason = Literal["credit", "read", "window"]


@dataclass
class Consumer:
    next: int  # the next batch to send
    stop: int
    here: bool = False  # connected; otherwise expected until `deadline`
    detached: bool = False
    deadline: float = 0.0
    credit: int = 0  # how many batches may be on their way
    sent: deque[int] = field(default_factory=deque)  # and not known to have arrived
    floor: int = 0  # under ``skip``: what lies before it is not kept any more

    @property
    def arrived(self) -> int:
        """What lies before it has arrived, or was skipped: where it goes on when it comes back."""
        return max(self.floor, self.sent[0] if self.sent else self.next)

    @property
    def attached(self) -> bool:
        """Whether the window is kept for it: it neither reads alone nor has everything."""
        return not self.detached and self.arrived < self.stop

    @property
    def wants(self) -> bool:
        """Whether the next batch may be sent as soon as it is there."""
        return self.here and len(self.sent) < self.credit and self.next < self.stop

    def send(self) -> int:
        """Note that the next batch goes out; returns which."""
        self.sent.append(self.next)
        self.next += 1
        return self.sent[-1]

    def skip_to(self, index: int) -> int:
        """Give up what comes before a batch, but for the last of all, and what is on its way; returns how many it loses."""
        lost = max(0, min(index, self.stop - 1) - self.next)
        self.next += lost
        self.floor = self.next
        return lost


@dataclass
class Window:
    capacity: int  # batches
    lag: Literal["block", "detach", "skip"]
    join_seconds: float
    lag_seconds: float
    consumers: dict[str, Consumer] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    loading: set[int] = field(default_factory=set)
    _reading_alone: set[str] = field(default_factory=set)
    _low: int = 0  # all that is held lies in [_low, _high)
    _high: int = 0
    _first: int = 0  # the first batch that is still to be sent; all of [_first, _asked) is held or being loaded
    _asked: int = 0
    _starving: bool = False
    _starved: float = 0.0  # seconds that others have waited for the slowest, less those in which nobody did
    _noted: float = 0.0

    # Events. Each returns what is to be done now.

    def expect(self, name: str, cursor: int, stop: int, now: float) -> list[Decision]:
        """A consumer will come: keep what it needs until then."""
        if name not in self.consumers:
            self.consumers[name] = Consumer(cursor, stop, deadline=now + self.join_seconds)
        drops = self._move()  # what it needs is loaded at the next event: others that are expected too may begin before it
        self._note_starvation(now)
        return drops

    def join(self, name: str, cursor: int, stop: int, now: float) -> list[Decision]:
        low = self.low  # with the place that was kept for this consumer, if there was one
        self.consumers.pop(name, None)
        behind = low is not None and cursor < low and self.low is not None
        self.consumers[name] = Consumer(cursor, stop, here=True, detached=behind)
        notes: list[Decision] = [Detached(name)] if behind else []
        return notes + self._proceed(now)

    def ask(self, name: str, cursor: int, credit: int, now: float) -> list[Decision]:
        """What lies before ``cursor`` has arrived, and ``credit`` batches from there on may be on their way."""
        consumer = self.consumers[name]
        while consumer.sent and consumer.sent[0] < cursor:
            consumer.sent.popleft()
        consumer.credit = credit
        finish: list[Decision] = [Finish(name)] if cursor >= consumer.stop else []
        return finish + self._proceed(now)

    def loaded(self, index: int, now: float) -> list[Decision]:
        self.loading.discard(index)
        if not self._low <= index < self._high:  # the window has moved on
            return [Drop(index), *self._proceed(now)]
        self.held.add(index)
        return self._proceed(now)

    def loaded_alone(self, name: str, index: int, now: float) -> list[Decision]:
        """A batch was read for one consumer: it is sent if that one still wants it."""
        self._reading_alone.discard(name)
        consumer = self.consumers.get(name)
        send: list[Decision] = []
        if consumer and consumer.detached and consumer.wants and consumer.next == index:
            send = [Send(name, consumer.send())]
        return send + self._proceed(now)

    def failed(self, index: int, name: str | None) -> None:
        """A batch could not be read, for the window or for one consumer: a later event asks for it again."""
        if name is None:
            self.loading.discard(index)
            self._asked = min(self._asked, index)
        else:
            self._reading_alone.discard(name)

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
        self._note_starvation(now)
        return [GaveUp(name) for name in overdue] + self._overtake_laggards() + self._proceed(now)

    # State

    @property
    def low(self) -> int | None:
        """The first batch that an attached consumer has not got yet; None without any."""
        return min((c.arrived for c in self._attached()), default=None)

    @property
    def stop(self) -> int:
        """The first batch that no attached consumer will ask for."""
        return max((c.stop for c in self._attached()), default=0)

    def lags(self) -> dict[str, int]:
        """By how many batches each consumer that has not got all is behind the foremost one."""
        foremost = max((c.arrived for c in self.consumers.values()), default=0)
        return {name: foremost - c.arrived for name, c in self.consumers.items() if c.arrived < c.stop}

    def waits(self) -> Counter[WaitReason]:
        """How many consumers that are here wait for what."""
        end = (self.low or 0) + self.capacity
        waits: Counter[WaitReason] = Counter()
        for c in self.consumers.values():
            if c.here and c.next < c.stop:
                waits["credit" if not c.wants else "window" if not c.detached and c.next >= end else "read"] += 1
        return waits

    def _attached(self) -> list[Consumer]:
        return [c for c in self.consumers.values() if c.attached]

    def _proceed(self, now: float) -> list[Decision]:
        """Everything that the state allows now: send, drop, load. Its cost grows with the consumers, not with the window."""
        self._reattach()
        decisions = self._move()
        for name, c in self.consumers.items():
            while c.next in self.held and not c.detached and c.wants:
                decisions.append(Send(name, c.send()))
        decisions += self._load()
        for name, c in self.consumers.items():
            if c.detached and c.wants and name not in self._reading_alone:
                self._reading_alone.add(name)
                decisions.append(LoadAlone(name, c.next))
        self._note_starvation(now)
        return decisions

    def _move(self) -> list[Decision]:
        """Move the window to where its consumers are, and drop what lies outside."""
        attached = self._attached()
        low = min((c.arrived for c in attached), default=self._low)
        high = min(low + self.capacity, max((c.stop for c in attached), default=low))
        if low >= self._low and high >= self._high:  # as it nearly always does, it moves ahead
            gone = [index for index in range(self._low, min(low, self._high)) if index in self.held]
        else:
            gone = [index for index in sorted(self.held) if not low <= index < high]
        self._low, self._high, self._asked = low, high, min(self._asked, high)
        self.held.difference_update(gone)
        return [Drop(index) for index in gone]

    def _load(self) -> list[Decision]:
        """Load what is missing of the window, as far as somebody still needs it and there is memory."""
        first = min((c.next for c in self._attached()), default=self._high)
        self._asked = first if first < self._first else max(first, self._asked)
        self._first = first
        loads: list[Decision] = []
        while self._asked < self._high and len(self.held) + len(self.loading) < self.capacity:
            if self._asked not in self.held and self._asked not in self.loading:
                self.loading.add(self._asked)
                loads.append(Load(self._asked))
            self._asked += 1
        return loads

    def _reattach(self) -> None:
        """Take back who has caught up. If nobody is in the window, it is opened anew where the hindmost is."""
        apart = [
            c for name, c in self.consumers.items() if c.detached and c.here and c.arrived < c.stop and name not in self._reading_alone
        ]
        if not apart:
            return
        low = self.low
        low = min(c.arrived for c in apart) if low is None else low
        for c in apart:
            c.detached = c.arrived < low

    def _note_starvation(self, now: float) -> None:
        """Add up how long somebody has waited at the window's end for the slowest; time when nobody does pays it back."""
        elapsed, self._noted = now - self._noted, now
        self._starved = max(0.0, self._starved + (elapsed if self._starving else -elapsed))
        attached = self._attached()
        low = min((c.arrived for c in attached), default=0)
        self._starving = any(c.wants and c.arrived > low and c.next >= low + self.capacity for c in attached)

    def _overtake_laggards(self) -> list[Decision]:
        """Let the others go on, if they have waited long enough."""
        if self.lag == "block" or not self._starving or self._starved < self.lag_seconds:
            return []
        low, foremost = self.low, max(c.arrived for c in self._attached())
        laggards = {name: c for name, c in self.consumers.items() if c.attached and c.arrived == low}
        self._starved = 0.0
        if self.lag == "skip":
            return [Skipped(name, c.skip_to(foremost)) for name, c in laggards.items()]
        for c in laggards.values():
            c.detached = True
        return [Detached(name) for name in laggards]
