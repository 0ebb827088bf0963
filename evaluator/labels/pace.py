"""Bound the requests under way by how quickly an endpoint answers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUICK = 0.25  # of the time limit: an answer within it lets one more request be under way


class Pace:
    """Hold requests of any number of threads back until they may begin.

    Many small services work on one request after the other, and go on with those that nobody waits for any more. So the first request
    goes alone. Each quick answer allows one more, up to ``most``; a late one halves their number.
    """

    def __init__(self, most: int, timeout: float):
        self._most, self._quick = most, QUICK * timeout
        self._allowed, self._under_way = 1, 0
        self._ready = 0.0  # when the endpoint is to be asked again, after it said how long to wait
        self._changed = threading.Condition()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until one more request may be under way, and count it."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way < self._allowed)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def answered(self, seconds: float) -> None:
        """Allow one more request if an answer was quick."""
        with self._changed:
            if seconds <= self._quick and self._allowed < self._most:
                self._allowed += 1
                self._changed.notify_all()

    def late(self) -> None:
        """Halve the allowed requests, as an answer did not come in time."""
        with self._changed:
            self._allowed = max(1, self._allowed // 2)

    def pause(self, seconds: float) -> None:
        """Let no request begin for some time."""
        with self._changed:
            self._ready = max(self._ready, time.monotonic() + seconds)

    def wait(self, deadline: float) -> None:
        """Wait as long as the endpoint has asked all requests to, up to a deadline."""
        if (pause := min(self._ready, deadline) - time.monotonic()) > 0:
            time.sleep(pause)
