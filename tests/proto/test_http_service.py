"""Services over HTTP: neither slow nor many clients take more than their share of time and threads."""

import socket
import threading
import time
import urllib.request

import pytest

from scopemill.proto import http_service, metrics
from scopemill.proto.config import LOOPBACK
from scopemill.proto.http_service import Request, Service


class Hello(Request):
    def do_GET(self):
        self.answer(b"hello", "text/plain")


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(http_service, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(http_service, "MOST_CONNECTIONS", 4)
    service = Service((LOOPBACK, 0), Hello)
    service.serve()
    yield service
    service.shutdown()
    service.server_close()


def fetch(service) -> bytes:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{service.server_port}/", timeout=10) as answer:
        return answer.read()


def test_a_client_that_sends_byte_by_byte_is_cut_off_in_time(service):
    """Each byte comes soon after the one before, so a limit of each read would never end it."""
    start = time.monotonic()
    with socket.create_connection((LOOPBACK, service.server_port), timeout=10) as slow:
        slow.sendall(b"GET / HTTP/1.0\r\n")
        with pytest.raises(OSError):
            while time.monotonic() < start + 8:
                slow.sendall(b"X")
                time.sleep(0.1)
    assert 0.9 < time.monotonic() - start < 5


def test_more_clients_than_there_is_room_for_are_turned_away_and_room_comes_back(service):
    before = threading.active_count()
    idle = [socket.create_connection((LOOPBACK, service.server_port), timeout=10) for _ in range(20)]
    turned_away = sum(connection.recv(1) == b"" for connection in idle[4:])
    assert turned_away == 16 and threading.active_count() <= before + 4
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert fetch(service) == b"hello"
            break
        except OSError:
            time.sleep(0.1)
    else:
        pytest.fail("nobody was served again after the idle connections had had their time")
    for connection in idle:
        connection.close()


def test_metrics_are_served_in_the_form_that_prometheus_asks_for():
    address = metrics.expose()
    for accept, kind in (("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")):
        asked = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith(kind)
            assert b"# TYPE scopemill_sweep_saes gauge" in answer.read()
