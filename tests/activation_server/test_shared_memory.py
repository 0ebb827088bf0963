"""Batches in shared memory: the same bytes as through the socket, whoever shares the stream, dies, freezes or cannot look in."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from threading import Event, Thread

import numpy as np
import pytest
from support.synthetic import make_dataset

from scopemill.activation_server import client as client_module
from scopemill.activation_server import mailbox as mailbox_module
from scopemill.activation_server import server as server_module
from scopemill.activation_server import shared_memory as memory_module
from scopemill.activation_server import stream as stream_module
from scopemill.activation_server.client import StreamClient
from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer
from scopemill.activation_server.shared_memory import SharedSlots, SharedSlotsView
from scopemill.activation_server.stream_reader import StreamReader
from scopemill.proto import wire
from scopemill.proto.dataset import read_manifest
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

HOOK = "blocks.0.hook_resid_post"
STREAM = StreamSpec("synthetic", (HOOK,), 64, 5, 2)
BATCHES = 100
# A batch is 32 KiB: a window of one MiB holds 32.


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Bucket:
    bucket = Bucket(str(tmp_path_factory.mktemp("shared memory")))
    make_dataset(bucket, hooks={HOOK: 128}, shards=4, rows=512)
    return bucket


@pytest.fixture(scope="module")
def wanted(dataset) -> list[str]:
    reader = StreamReader(dataset, read_manifest(dataset, "synthetic"), STREAM)
    into, found = bytearray(reader.batch_bytes), []
    for k in range(BATCHES):
        reader.read(k, memoryview(into), BATCHES)
        found.append(blake2b(into).hexdigest())
    reader.close()
    return found


@pytest.fixture
def serve(dataset) -> Iterator[Callable[..., ActivationServer]]:
    servers = []

    def start(**config) -> ActivationServer:
        servers.append(ActivationServer(dataset, ServerConfig(**{"window_mib": 1, "join_seconds": 60.0} | config)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


class Trainee(Thread):
    """A client in a thread. It begins when ``go`` is set."""

    def __init__(self, server: ActivationServer, name: str, pause: float = 0.0, go: bool = True):
        super().__init__(daemon=True)
        self.client = StreamClient(server.address, STREAM, name, 0, BATCHES, take=self.take)
        self.got: list[str] = []
        self.pause, self.from_shared = pause, 0
        self.go = Event()
        if go:
            self.go.set()
        self.start()

    def take(self, arrays: list[np.ndarray]) -> str:
        return blake2b(arrays[0].tobytes()).hexdigest()

    def run(self) -> None:
        self.go.wait(60)
        for _, digest in self.client:
            self.got.append(digest)
            self.from_shared += self.client._shared is not None
            time.sleep(self.pause)
        self.client.close()

    def finish(self) -> list[str]:
        self.go.set()
        self.join(60)
        assert not self.is_alive()
        return self.got


def test_trainers_through_the_ring_and_through_the_socket_get_the_same_bytes(serve, wanted, monkeypatch):
    server = serve()
    for name in "abcd":
        server.expect(STREAM, name, 0, BATCHES)
    local = [Trainee(server, name, pause) for name, pause in (("a", 0), ("b", 0.003))]
    monkeypatch.setattr(client_module, "this_host", lambda: "another host")
    remote = [Trainee(server, name, pause) for name, pause in (("c", 0), ("d", 0.002))]
    assert all(trainee.finish() == wanted for trainee in local + remote)
    assert [t.from_shared for t in local + remote] == [BATCHES, BATCHES, 0, 0]


def test_a_trainer_that_cannot_open_the_memory_says_so_and_gets_the_bytes(serve, wanted, monkeypatch, caplog):
    caplog.set_level("INFO", logger=client_module.log.name)
    monkeypatch.setattr(memory_module, "_name", lambda token: "something else")  # as if the process id were another's
    monkeypatch.setattr(memory_module.SharedSlots, "__init__", own_name(memory_module.SharedSlots.__init__, monkeypatch))
    trainee = Trainee(serve(), "a")
    assert trainee.finish() == wanted and trainee.from_shared == 0
    assert "cannot be opened (" in caplog.text and "is not something else" in caplog.text


def own_name(original, monkeypatch):
    def init(self, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(memory_module, "_name", lambda token: f"scopemill-{token}")
            original(self, *arguments)

    return init


def test_where_there_is_no_such_memory_batches_go_through_the_socket(serve, wanted, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(memory_module.os, "memfd_create", refuse)
    trainee = Trainee(serve(), "a")
    assert trainee.finish() == wanted and trainee.from_shared == 0
    assert "this host has no shared memory" in caplog.text


def test_slots_beyond_the_ring_go_through_the_socket(serve, wanted, monkeypatch):
    monkeypatch.setattr(stream_module, "SPARE_SLOTS", -20)
    monkeypatch.setattr(server_module.ActivationServer, "_close_if_idle", lambda *_: None)  # so that it can be looked at
    server = serve()
    for name in "ab":
        server.expect(STREAM, name, 0, BATCHES)
    trainees = [Trainee(server, "a"), Trainee(server, "b", 0.002)]
    assert all(trainee.finish() == wanted for trainee in trainees)
    slots = server._streams[STREAM].memory.free
    assert {slot.place is None for slot in slots} == {True, False}


# Trainers that die or freeze

PROCESS = """
import sys, time
from hashlib import blake2b
from scopemill.activation_server.client import StreamClient
from scopemill.proto.wire import StreamSpec
address, hook, stop, pause = sys.argv[1:]
def take(arrays):
    first = blake2b(arrays[0][:32].tobytes())
    print("half", flush=True)
    time.sleep(float(pause))
    first.update(arrays[0][32:].tobytes())
    return first.hexdigest()
client = StreamClient(address, StreamSpec("synthetic", (hook,), 64, 5, 2), "process", 0, int(stop), take=take)
for k, digest in client:
    print(k, digest, client._shared is not None, flush=True)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    started = []

    def process(server: ActivationServer, pause: float) -> subprocess.Popen:
        command = [sys.executable, "-c", PROCESS, server.address, HOOK, str(BATCHES), str(pause)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield process
    for one in started:
        one.kill()
        one.wait()
        one.stdout.close()


def halves(process: subprocess.Popen, count: int) -> list[str]:
    """Its lines up to the count-th batch that it has half read."""
    lines = []
    while sum(line == "half" for line in lines) < count:
        lines.append(process.stdout.readline().strip())
        assert lines[-1], "it has ended"
    return lines


def test_a_killed_trainer_gives_back_its_slots(serve, start, wanted, monkeypatch):
    monkeypatch.setattr(server_module.ActivationServer, "_close_if_idle", lambda *_: None)  # so that it can be looked at
    server = serve(join_seconds=0.3)
    process = start(server, 0.0)
    other = Trainee(server, "other", go=False)
    halves(process, 3)
    process.kill()
    assert other.finish() == wanted
    memory = server._streams[STREAM].memory
    deadline = time.monotonic() + 20
    while len(memory.free) < memory.count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(memory.free) == memory.count and not any(memory._loans.values())


def test_a_trainer_that_was_frozen_over_half_a_batch_sees_that_it_was_overwritten_and_asks_again(serve, start, wanted, monkeypatch):
    monkeypatch.setattr(mailbox_module, "LIVENESS", {mailbox_module.zmq.HEARTBEAT_IVL: 50, mailbox_module.zmq.HEARTBEAT_TIMEOUT: 300})
    monkeypatch.setattr(server_module, "HEARTBEAT_SECONDS", 0.2)
    server = serve(join_seconds=0.3)
    other = Trainee(server, "other", go=False)
    process = start(server, 0.05)
    lines = halves(process, 3)
    process.send_signal(signal.SIGSTOP)
    assert other.finish() == wanted  # three times through all slots of the ring
    process.send_signal(signal.SIGCONT)
    rest, _ = process.communicate(timeout=60)
    lines += rest.split("\n")
    batches = [line.split() for line in lines if line and line != "half"]
    assert [(int(k), digest) for k, digest, _ in batches] == list(enumerate(wanted))
    assert {ring for *_, ring in batches} == {"True"}
    assert lines.count("half") > BATCHES, "what was overwritten was read once more"


def test_a_segment_is_what_it_says_or_is_refused():
    ring = SharedSlots(3, 100)
    view = SharedSlotsView(ring.segment, 100)
    memory, generation = ring.slot(2)
    memory[:] = bytes(range(100))
    generation += 7
    assert bytes(view.slot(2)) == bytes(range(100)) and view.slot(2).readonly
    assert view.holds(2, 7) and not view.holds(2, 6) and not view.holds(3, 0) and not view.holds(2**62, 0)
    s = ring.segment
    for wrong in (
        wire.Segment(s.process, s.descriptor, "0" * 32, s.slots),
        wire.Segment(s.process, 2**31, s.token, s.slots),
        wire.Segment(2**62, s.descriptor, s.token, s.slots),
        wire.Segment(s.process, s.descriptor, s.token, s.slots + 1000),
        wire.Segment(s.process, s.descriptor, s.token, 2**62),
        wire.Segment(s.process, 0, s.token, s.slots),
    ):
        with pytest.raises((OSError, ValueError, OverflowError)):
            SharedSlotsView(wrong, 100)
    ring.close()
    with pytest.raises((OSError, ValueError)):
        SharedSlotsView(s, 100)
    assert bytes(view.slot(2)) == bytes(range(100))  # who has it open keeps it


def test_nothing_stays_of_a_server_in_this_process_or_in_shared_memory(dataset, wanted):
    def ours() -> int:
        gc.collect()
        with open("/proc/self/maps") as file:
            return sum("memfd:scopemill" in line for line in file)

    before, files = ours(), set(os.listdir("/dev/shm"))
    for _ in range(3):
        server = ActivationServer(dataset, ServerConfig(window_mib=1))
        assert Trainee(server, "a").finish() == wanted
        server.stop()
    del server
    deadline = time.monotonic() + 10
    while ours() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ours() == before
    assert not {name for name in set(os.listdir("/dev/shm")) - files if "scopemill" in name}
