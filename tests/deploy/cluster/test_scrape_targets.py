"""The driver's list of processes over HTTP, and how long it waits at its end for Prometheus to fetch the last one."""

import socket
from urllib.parse import urlsplit

from scopemill.deploy.cluster.scrape_targets import LAST_WORD_SECONDS, Discovery
from scopemill.proto.config import LOOPBACK


class Clock:
    """Time passes only by sleeping; ``wakes`` are called after so many sleeps."""

    def __init__(self, wakes=None):
        self.now, self._sleeps, self._wakes = 0.0, 0, wakes or {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._sleeps += 1
        self._wakes.get(self._sleeps, lambda: None)()


def fetch(discovery: Discovery) -> bytes:
    """Read to the connection's end, which comes after the server has noted its answer."""
    place = urlsplit(discovery.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection, connection.makefile("rb") as answer:
        connection.sendall(b"GET /targets HTTP/1.0\r\n\r\n")
        return answer.read().partition(b"\r\n\r\n")[2]


def test_where_nobody_ever_asked_nothing_is_waited_for():
    discovery, clock = Discovery(LOOPBACK, 0), Clock()
    discovery.publish("[1]")
    discovery.close(clock, clock.sleep)
    assert clock.now == 0


def test_the_last_list_is_waited_for_until_it_was_fetched():
    discovery = Discovery(LOOPBACK, 0)
    fetched = []
    clock = Clock({3: lambda: fetched.append(fetch(discovery))})
    discovery.publish("[1]")
    assert fetch(discovery) == b"[1]"
    discovery.publish("[]")
    discovery.close(clock, clock.sleep)
    assert fetched == [b"[]"] and 0 < clock.now < 1


def test_a_prometheus_that_asks_no_more_is_not_waited_for_longer_than_promised():
    discovery, clock = Discovery(LOOPBACK, 0), Clock()
    fetch(discovery)
    discovery.publish("[1]")
    discovery.close(clock, clock.sleep)
    assert LAST_WORD_SECONDS <= clock.now < LAST_WORD_SECONDS + 1
