"""The server with real sockets: what trainers get, and what becomes of them when others, or the server, misbehave."""

import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgpack
import numpy as np
import pytest
import zarr
import zmq
from prometheus_client import REGISTRY
from support.synthetic import make_dataset

from scopemill.activation_server import client as client_module
from scopemill.activation_server import mailbox as mailbox_module
from scopemill.activation_server import server as server_module
from scopemill.activation_server import stream as stream_module
from scopemill.activation_server.client import StreamClient
from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.order import Order
from scopemill.activation_server.server import ActivationServer
from scopemill.proto import errors, wire
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

A, B = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"
# A batch is 256 KiB (ZeroMQ copies only what is below 64 KiB), so a window of one MiB holds four.
WIDTH, ROWS, SHARDS, BATCH, CAPACITY = 1024, 512, 4, 64, 4
EPOCH = ROWS * SHARDS // BATCH
PATIENCE = 60.0


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scopemill.proto.chunks.CHUNK_BYTES", 512 * 1024)
        yield


@pytest.fixture(autouse=True)
def quick_heartbeats(monkeypatch) -> None:
    monkeypatch.setattr(server_module, "HEARTBEAT_SECONDS", 0.2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> tuple[Bucket, DatasetManifest]:
    bucket = Bucket(str(tmp_path_factory.mktemp("server")))
    return bucket, make_dataset(bucket, hooks={A: WIDTH}, shards=SHARDS, rows=ROWS)


def digest(*arrays: np.ndarray) -> str:
    return hashlib.blake2b(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def batches(bucket: Bucket, manifest: DatasetManifest, stream: StreamSpec, stop: int) -> list[str]:
    """What each batch must be, from zarr-python and the order."""
    folder = DatasetLayout(manifest.dataset)
    whole = {
        (shard, hook): zarr.open_array(f"{bucket.url}/{folder.array(shard, hook)}", mode="r")[:]
        for shard in range(manifest.shards)
        for hook in stream.hooks
    }
    order = Order(manifest, stream)
    return [
        digest(*(np.concatenate([whole[p.shard, hook][p.start : p.stop] for p in order.pieces(k)]) for hook in stream.hooks))
        for k in range(stop)
    ]


@pytest.fixture(scope="module")
def wanted(dataset) -> list[str]:
    return batches(*dataset, spec(), 2 * EPOCH)


def spec(hooks=(A,), batch=BATCH, seed=5, dataset="synthetic") -> StreamSpec:
    return StreamSpec(dataset, tuple(hooks), batch, seed, 2)


def metric(name: str, stream: StreamSpec | None = None) -> float:
    return REGISTRY.get_sample_value(f"scopemill_server_{name}", {"stream": (stream or spec()).label}) or 0.0


@pytest.fixture
def gained() -> Callable[..., float]:
    """By how much a counter has grown since the test began."""
    names = ["bytes_read_total", "bytes_served_total", "detached_bytes_total", "detached_total", "skipped_total", "lost_total"]
    before = {name: metric(name) for name in names}
    return lambda name: metric(name) - before[name]


@pytest.fixture
def serve(dataset) -> Iterator[Callable[..., ActivationServer]]:
    """Start servers; whatever the test did to them, each stops within seconds and leaves no thread."""
    threads, servers = set(threading.enumerate()), []

    def start(bucket: Bucket | None = None, streams: int = 1, **config) -> ActivationServer:
        config = {"window_mib": 1, "join_seconds": 60.0} | config
        servers.append(ActivationServer(bucket or dataset[0], ServerConfig(**config), streams))
        return servers[-1]

    yield start
    for server in servers:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 8
    own = ("activation-server", "reader-", "chunk-reader")
    soon(lambda: not [t for t in set(threading.enumerate()) - threads if t.name.startswith(own)], "the server's threads end")


def soon(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)


class Trainee(threading.Thread):
    """A client in a thread. ``steps``: how many batches it may work off, until ``allow_all``; None: all."""

    def __init__(self, server, name, stream=None, cursor=0, stop=EPOCH, pause=0.0, steps=None):
        super().__init__(name=f"trainee-{name}", daemon=True)
        self.address = server.address if isinstance(server, ActivationServer) else server
        self.stream, self.consumer, self.cursor, self.stop_at, self.pause = stream or spec(), name, cursor, stop, pause
        self.got: list[tuple[int, str]] = []
        self.error: Exception | None = None
        self.halted = threading.Event()
        self._allowed = 10**9 if steps is None else steps
        self.start()

    def allow_all(self) -> None:
        self._allowed = 10**9

    def run(self) -> None:
        try:
            client = StreamClient(self.address, self.stream, self.consumer, self.cursor, self.stop_at, self.halted.is_set)
            try:
                for k, arrays in client:
                    self.got.append((k, digest(*arrays)))
                    time.sleep(self.pause)
                    while len(self.got) > self._allowed:
                        if self.halted.wait(0.005):
                            return
            finally:
                client.close()
        except Exception as error:
            self.error = error

    def finish(self) -> list[tuple[int, str]]:
        self.join(PATIENCE)
        assert not self.is_alive(), f"{self.consumer} waits for ever; it has {len(self.got)} batches"
        if self.error:
            raise self.error
        return self.got

    def has(self, count: int) -> None:
        soon(lambda: len(self.got) >= count or self.error is not None, f"{self.consumer} gets {count} batches")

    def has_no_more_than(self, count: int, for_seconds: float = 0.4) -> None:
        time.sleep(for_seconds)
        assert len(self.got) == count


def all_of(wanted: list[str], start: int = 0, stop: int = EPOCH) -> list[tuple[int, str]]:
    return [(k, wanted[k]) for k in range(start, stop)]


# One read serves all


def test_four_clients_at_four_speeds_get_the_same_bytes_from_one_read(serve, wanted, gained, dataset):
    server = serve()
    for name in "abcd":
        server.expect(spec(), name, 0, EPOCH)
    trainees = [Trainee(server, name, pause=pause) for name, pause in zip("abcd", (0, 0.001, 0.004, 0.01), strict=True)]
    assert all(trainee.finish() == all_of(wanted) for trainee in trainees)
    batch_bytes = BATCH * WIDTH * 4
    assert gained("bytes_served_total") == 4 * EPOCH * batch_bytes
    assert dataset[1].array(A).chunks > 2
    assert gained("bytes_read_total") == EPOCH * batch_bytes
    assert gained("detached_total") == gained("detached_bytes_total") == gained("lost_total") == 0


def test_batches_go_on_over_the_end_of_an_epoch(serve, wanted):
    assert Trainee(serve(), "a", cursor=EPOCH - 3, stop=EPOCH + 5).finish() == all_of(wanted, EPOCH - 3, EPOCH + 5)


def test_the_window_waits_for_an_expected_client(serve, wanted, gained):
    server = serve()
    server.expect(spec(), "late", 0, EPOCH)
    early = Trainee(server, "early")
    early.has(CAPACITY)
    early.has_no_more_than(CAPACITY)
    late = Trainee(server, "late")
    assert early.finish() == late.finish() == all_of(wanted)
    assert gained("detached_total") == 0
    assert gained("bytes_served_total") == pytest.approx(2 * gained("bytes_read_total"), rel=1e-3)


def test_the_window_gives_up_an_expected_client_that_does_not_come(serve, wanted, gained):
    server = serve(join_seconds=0.3)
    server.expect(spec(), "never", 0, EPOCH)
    assert Trainee(server, "a").finish() == all_of(wanted)
    assert gained("lost_total") == 1


def test_a_late_client_that_nobody_expected_reads_by_itself_until_it_has_caught_up(serve, wanted, gained):
    server = serve()
    first = Trainee(server, "first", steps=EPOCH // 2)
    first.has(EPOCH // 2 + 1)
    late = Trainee(server, "late")
    late.has(EPOCH // 2 + 1)  # more than it could have without the first one's window
    assert gained("detached_total") == 1
    alone = gained("detached_bytes_total")
    assert alone > 0
    first.allow_all()
    assert first.finish() == late.finish() == all_of(wanted)
    assert gained("detached_bytes_total") == alone
    assert gained("detached_total") == 1


def test_a_slow_client_slows_the_others(serve, wanted):
    server = serve(lag="block")
    for name in ("slow", "fast"):
        server.expect(spec(), name, 0, EPOCH)
    slow, fast = Trainee(server, "slow", steps=2), Trainee(server, "fast")
    slow.has(3)
    fast.has(2 + CAPACITY)
    fast.has_no_more_than(2 + CAPACITY)
    slow.allow_all()
    assert slow.finish() == fast.finish() == all_of(wanted)


def test_the_metrics_tell_who_lags_and_what_trainers_wait_for(serve, wanted):
    server = serve(lag="block")
    for name in ("slow", "fast"):
        server.expect(spec(), name, 0, EPOCH)

    def lag(sae: str) -> float | None:
        return REGISTRY.get_sample_value("scopemill_server_lag_batches", {"stream": spec().label, "sae": sae})

    def waited(reason: str) -> float:
        return REGISTRY.get_sample_value("scopemill_server_wait_seconds_total", {"stream": spec().label, "reason": reason}) or 0.0

    slow, fast = Trainee(server, "slow", steps=2), Trainee(server, "fast")
    soon(lambda: (lag("slow"), lag("fast")) == (CAPACITY, 0), "the slow one stands at the window's low end, the fast one at its high end")
    assert metric("window_capacity") == CAPACITY
    before = {reason: waited(reason) for reason in ("credit", "read", "window")}
    soon(lambda: waited("credit") - before["credit"] > 1 and waited("window") - before["window"] > 1, "one is busy, one waits for it")
    assert waited("read") == before["read"]
    slow.allow_all()
    assert slow.finish() == fast.finish() == all_of(wanted)
    soon(lambda: lag("slow") is None and lag("fast") is None, "who has left has no series any more")


def test_a_stalled_client_is_left_behind_and_still_gets_every_batch(serve, wanted, gained):
    server = serve(lag="detach", lag_seconds=0.3)
    for name in ("a", "b", "stalled"):
        server.expect(spec(), name, 0, EPOCH)
    stalled = Trainee(server, "stalled", steps=0)
    others = [Trainee(server, "a"), Trainee(server, "b")]
    assert all(trainee.finish() == all_of(wanted) for trainee in others)
    assert len(stalled.got) == 1
    assert gained("detached_total") == 1
    stalled.allow_all()
    assert stalled.finish() == all_of(wanted)


def test_a_stalled_client_loses_batches_where_the_server_skips_and_that_is_counted(serve, wanted, gained):
    server = serve(lag="skip", lag_seconds=0.3)
    for name in ("a", "stalled"):
        server.expect(spec(), name, 0, EPOCH)
    stalled = Trainee(server, "stalled", steps=0)
    assert Trainee(server, "a").finish() == all_of(wanted)
    stalled.allow_all()
    got = stalled.finish()
    assert [k for k, _ in got] == sorted({k for k, _ in got}) and got[0][0] == 0 and got[-1][0] == EPOCH - 1
    assert set(got) < set(all_of(wanted))
    assert gained("skipped_total") == EPOCH - len(got)


def test_clients_that_wait_are_told_that_the_server_is_alive(serve, wanted, monkeypatch):
    monkeypatch.setattr(client_module, "SILENCE_SECONDS", 1.0)
    server = serve()
    server.expect(spec(), "late", 0, EPOCH)
    early = Trainee(server, "early")
    early.has(CAPACITY)
    early.has_no_more_than(CAPACITY, 1.5 * client_module.SILENCE_SECONDS)
    assert early.error is None
    late = Trainee(server, "late")
    assert early.finish() == late.finish() == all_of(wanted)


def test_a_client_that_is_busy_for_long_is_not_taken_for_dead(serve, wanted, monkeypatch, caplog):
    monkeypatch.setattr(mailbox_module, "LIVENESS", {zmq.HEARTBEAT_IVL: 50, zmq.HEARTBEAT_TIMEOUT: 300})
    monkeypatch.setattr(server_module, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(server_module, "TICK_SECONDS", 0.001)
    caplog.set_level("INFO", logger=server_module.log.name)
    waits, original = [], mailbox_module.Mailbox.send

    def send(self, identity, message, body=None):
        if isinstance(message, wire.Wait):
            waits.append(time.monotonic())
        return original(self, identity, message, body)

    monkeypatch.setattr(mailbox_module.Mailbox, "send", send)
    busy = Trainee(serve(), "busy", steps=3)
    busy.has(4)
    waits.clear()
    # More than its queue would hold without RECEIVE_QUEUE, and for longer than ZeroMQ's heartbeats may stay unanswered.
    soon(lambda: len(waits) > 300 and waits[-1] - waits[0] > 0.6, "it does not look at hundreds of WAITs")
    busy.allow_all()
    assert busy.finish() == all_of(wanted)
    assert "cannot be reached" not in caplog.text


# Clients that die, freeze or come back

CLIENT = """
import sys
from hashlib import blake2b
from scopemill.activation_server.client import StreamClient
from scopemill.proto.wire import StreamSpec
address, hook, batch, seed, cursor, stop, pause = sys.argv[1:]
import time
for k, (rows,) in StreamClient(address, StreamSpec("synthetic", (hook,), int(batch), int(seed), 2), "process", int(cursor), int(stop)):
    print(k, blake2b(rows.tobytes()).hexdigest(), flush=True)
    time.sleep(float(pause))
print("end", flush=True)
"""


class Process:
    """A client in a process of its own, to be killed or frozen."""

    def __init__(self, server: ActivationServer, cursor: int = 0, pause: float = 0.02):
        arguments = [server.address, A, BATCH, 5, cursor, EPOCH, pause]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, *map(str, arguments)],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        self.got: list[tuple[int, str]] = []

    def take(self, count: int) -> list[tuple[int, str]]:
        """Its next batches; fewer if it ends before."""
        for _ in range(count):
            words = self.process.stdout.readline().split()
            if len(words) != 2:
                break
            self.got.append((int(words[0]), words[1]))
        return self.got

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def send(self, number: int) -> None:
        self.process.send_signal(number)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    made: list[Process] = []
    yield made
    for process in made:
        process.kill()
        process.process.stdout.close()


@pytest.mark.parametrize("back", [0, 5], ids=["where it was", "at an older checkpoint"])
def test_a_killed_client_goes_on_at_its_cursor_and_the_others_never_notice(serve, processes, wanted, back):
    server = serve()
    for name in ("a", "process"):
        server.expect(spec(), name, 0, EPOCH)
    other = Trainee(server, "a")
    processes.append(first := Process(server))
    first.take(9)
    first.kill()
    other.has(9)
    cursor = 9 - back
    processes.append(second := Process(server, cursor=cursor))
    assert second.take(EPOCH) == all_of(wanted, cursor)
    assert first.got == all_of(wanted, 0, 9)
    assert other.finish() == all_of(wanted)


def test_a_killed_client_that_stays_away_holds_nobody_for_ever(serve, processes, wanted, gained):
    server = serve(join_seconds=0.5)
    others = [Trainee(server, "a", steps=0), Trainee(server, "b", steps=0)]
    for trainee in others:
        trainee.has(1)
    processes.append(killed := Process(server, pause=1000))
    killed.take(1)
    for trainee in others:  # both wait for the third: nobody sends a message that could wake the server
        trainee.allow_all()
        trainee.has(CAPACITY)
    killed.kill()
    assert all(trainee.finish() == all_of(wanted) for trainee in others)
    assert gained("lost_total") == 1


def test_a_frozen_client_is_lost_after_a_while_and_goes_on_when_it_thaws(serve, processes, wanted, gained, monkeypatch):
    monkeypatch.setattr(mailbox_module, "LIVENESS", {zmq.HEARTBEAT_IVL: 100, zmq.HEARTBEAT_TIMEOUT: 400})
    server = serve(join_seconds=0.3)
    other = Trainee(server, "a", steps=0)
    other.has(1)
    processes.append(frozen := Process(server))
    frozen.take(3)
    frozen.send(signal.SIGSTOP)
    other.allow_all()
    assert other.finish() == all_of(wanted)
    assert gained("lost_total") == 1
    frozen.send(signal.SIGCONT)
    assert frozen.take(EPOCH) == all_of(wanted)


class Proxy:
    """A TCP connection that can be cut: what goes on in between, neither end knows."""

    def __init__(self, address: str):
        self._to = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[socket.socket] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
            except OSError:
                return
            self.connections += 1
            self._pairs += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def cut(self) -> None:
        for end in self._pairs:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._pairs.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.mark.parametrize("while_it", ["waits", "works"])
def test_a_connection_that_breaks_costs_no_batch(serve, wanted, monkeypatch, while_it, gained):
    monkeypatch.setattr(client_module, "ASK_AGAIN_SECONDS", 0.3)
    server = serve()
    proxy = Proxy(server.address)
    for name in ("other", "cut"):
        server.expect(spec(), name, 0, EPOCH)
    other = Trainee(server, "other", steps=0 if while_it == "waits" else None)
    cut = Trainee(proxy.address, "cut", steps=None if while_it == "waits" else 2)
    cut.has(CAPACITY if while_it == "waits" else 3)
    for number in range(1, 4):
        proxy.cut()
        soon(lambda number=number: proxy.connections > number, "ZeroMQ connects again")
    other.allow_all()
    cut.allow_all()
    assert cut.finish() == other.finish() == all_of(wanted)
    assert proxy.connections > 3
    assert gained("detached_total") == gained("lost_total") == 0  # its place was kept
    proxy.close()


def test_a_client_that_left_comes_back_in_the_middle(serve, wanted):
    server = serve()
    first = Trainee(server, "a", stop=10)
    assert first.finish() == all_of(wanted, 0, 10)
    assert Trainee(server, "a", cursor=10).finish() == all_of(wanted, 10)


def test_a_second_connection_of_one_name_takes_the_place_of_the_first(serve, wanted):
    server = serve()
    first = Trainee(server, "a", steps=4)
    first.has(5)
    assert Trainee(server, "a", cursor=2).finish() == all_of(wanted, 2)
    first.halted.set()
    first.finish()


# The end, several streams, several hooks


def test_a_client_that_has_everything_is_told_so_at_once(serve):
    server = serve()
    assert Trainee(server, "a", cursor=EPOCH).finish() == []
    assert Trainee(server, "b", cursor=EPOCH + 7).finish() == []


def test_streams_of_one_server_are_independent(serve, bucket, tmp_path):
    manifest = make_dataset(bucket, hooks={A: WIDTH, B: 700}, shards=4, rows=256)
    streams = [spec((A,)), spec((B,)), spec((A, B), batch=32), spec((B, A), batch=96, seed=9)]
    server = serve(bucket, streams=len(streams), window_mib=8)
    stops = [Order(manifest, stream).batches_per_epoch + 2 for stream in streams]
    trainees = [Trainee(server, "one", stream, stop=stop) for stream, stop in zip(streams, stops, strict=True)]
    trainees += [Trainee(server, "two", streams[2], stop=stops[2], pause=0.002)]
    for trainee in trainees:
        assert trainee.finish() == list(enumerate(batches(bucket, manifest, trainee.stream, trainee.stop_at)))


def test_streams_come_and_go_within_the_memory_of_one(serve, bucket):
    manifest = make_dataset(bucket, hooks={A: WIDTH, B: 700}, shards=4, rows=256)
    server = serve(bucket)
    for stream in (spec((A,)), spec((B,)), spec((A,))):
        server.expect(stream, "one", 0, 6)  # at once: the word of the last stream's trainer may still be on its way
        assert Trainee(server, "one", stream, stop=6).finish() == list(enumerate(batches(bucket, manifest, stream, 6)))
    soon(lambda: not server._streams, "the last one goes too")
    assert not [t for t in threading.enumerate() if t.name.startswith("reader-") and t.is_alive() and B in t.name]


def test_a_stream_whose_trainer_never_comes_gives_its_place_to_another(serve, bucket):
    make_dataset(bucket, hooks={A: WIDTH, B: 700}, shards=4, rows=256)
    server = serve(bucket, join_seconds=0.3)
    server.expect(spec((A,)), "absent", 0, 6)
    server.expect(spec((B,)), "present", 0, 6)
    assert [stream.hooks for stream in server._streams] == [(B,)]


def test_nobody_waits_for_a_trainer_that_will_not_come_back(serve, wanted, processes):
    server = serve()  # which would keep its place for a minute
    processes.append(killed := Process(server, pause=1000))
    killed.take(1)
    trainee = Trainee(server, "a")
    killed.kill()
    server.expect(spec(), "never", 0, EPOCH)
    for name in ("process", "never", "nobody"):
        server.expect_no_more(spec(), name)
    server.expect_no_more(spec(batch=8), "of a stream that is not there")
    assert trainee.finish() == all_of(wanted)
    soon(lambda: not server._streams, "the stream goes with the last who reads it")


def test_a_batch_of_several_hooks_comes_as_an_aligned_array_for_each(serve, bucket):
    make_dataset(bucket, hooks={A: 1024, B: 96}, shards=2, rows=128)
    stream = spec((B, A), batch=32)
    client = StreamClient(serve(bucket).address, stream, "a", 0, 8)
    assert client.widths == (96, 1024) and client.dtype == "float32"
    seen = []
    for _, (b, a) in client:
        assert b.shape == (32, 96) and a.shape == (32, 1024)
        assert b[:, 0].tolist() == a[:, 0].tolist()
        seen += a[:, 0].tolist()
    client.close()
    assert sorted(seen) == list(range(256))


def test_bfloat16_comes_as_its_bits(serve, bucket):
    manifest = make_dataset(bucket, hooks={A: WIDTH}, shards=2, rows=128, dtype="bfloat16")
    client = StreamClient(serve(bucket).address, spec(batch=64), "a", 0, 4)
    assert client.dtype == "bfloat16"
    got = []
    for _, (rows,) in client:
        assert rows.dtype == np.uint16
        got.append(digest(rows))
    client.close()
    assert got == batches(bucket, manifest, spec(batch=64), 4)


# What is wrong is said in a sentence, to the one whom it concerns


@pytest.mark.parametrize(
    ("stream", "error", "sentence"),
    [
        (spec(dataset="absent"), errors.MissingObject, "activations/absent/dataset.json is not there"),
        (spec(dataset="../../etc"), errors.InputError, "is not a usable name"),
        (spec(("blocks.9.hook_resid_post",)), errors.MissingObject, "holds no hook 'blocks.9.hook_resid_post'; it holds blocks.0"),
        (spec(batch=5000), errors.InputError, "a batch of 5000 rows is more than"),
        (spec(batch=0), errors.InputError, "must be at least 1"),
        (spec(batch=200), errors.InputError, "server.window_mib leaves 1 MiB to stream"),
    ],
    ids=["dataset", "path", "hook", "batch too large", "empty batch", "window too small"],
)
def test_a_stream_that_cannot_be_is_refused_as_what_it_is(serve, wanted, stream, error, sentence):
    server = serve()
    with pytest.raises(error, match=sentence):
        StreamClient(server.address, stream, "a", 0, 5)
    with pytest.raises(error, match=sentence):
        server.expect(stream, "a", 0, 5)
    assert Trainee(server, "good").finish() == all_of(wanted)


def test_a_long_sentence_arrives_as_the_error_that_it_is(serve, bucket):
    make_dataset(bucket, hooks={f"blocks.{layer}.hook_resid_post": 2 for layer in range(60)}, shards=1, rows=4)
    with pytest.raises(errors.MissingObject, match="blocks.59.hook_resid_post"):
        StreamClient(serve(bucket).address, spec(("blocks.60.hook_resid_post",), batch=2), "a", 0, 1)


def test_a_manifest_that_does_not_parse_harms_only_who_asks_for_it(serve, bucket):
    make_dataset(bucket, hooks={A: WIDTH}, shards=2, rows=128)
    bucket.write(DatasetLayout("broken").manifest, b'{"format": 1}')
    server = serve(bucket)
    with pytest.raises(errors.ScopemillError, match="activations/broken/dataset.json"):
        StreamClient(server.address, spec(dataset="broken"), "a", 0, 1)
    assert len(Trainee(server, "b", stop=4).finish()) == 4


def test_a_failure_that_nobody_foresaw_is_told_to_who_caused_it_and_ends_nothing(serve, wanted, monkeypatch):
    def read_manifest(bucket, dataset):
        if dataset == "odd":
            raise ZeroDivisionError("by chance")
        return original(bucket, dataset)

    original = server_module.read_manifest
    monkeypatch.setattr(server_module, "read_manifest", read_manifest)
    server = serve()
    trainee = Trainee(server, "good", steps=2)
    with pytest.raises(errors.ScopemillError, match="ZeroDivisionError: by chance"):
        StreamClient(server.address, spec(dataset="odd"), "a", 0, 1)
    with pytest.raises(ZeroDivisionError):
        server.expect(spec(dataset="odd"), "a", 0, 1)
    trainee.allow_all()
    assert trainee.finish() == all_of(wanted)


def test_a_corrupt_shard_is_taken_back_and_reported_to_every_client(serve, bucket):
    manifest = make_dataset(bucket, hooks={A: WIDTH}, shards=4, rows=256)
    piece = Order(manifest, spec()).pieces(9)[0]
    path = f"{DatasetLayout('synthetic').array(piece.shard, A)}/c/0/0"
    record = DatasetLayout("synthetic").commit(piece.shard)
    whole, commit = bucket.read(path), bucket.read(record)
    bucket.write(path, whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    server = serve(bucket)
    for name in ("a", "b"):
        server.expect(spec(), name, 0, 16)
    for trainee in [Trainee(server, "a", stop=16), Trainee(server, "b", stop=16)]:
        with pytest.raises(errors.ShardLost, match=rf"shard {piece.shard} .*({path}|is not committed)"):
            trainee.finish()
        assert not bucket.exists(record)
        assert [k for k, _ in trainee.got] == list(range(len(trainee.got)))
    soon(lambda: not server._streams, "both have left, and so has the stream")
    bucket.write(path, whole)
    bucket.write(record, commit)
    assert len(Trainee(server, "a", stop=16).finish()) == 16  # what was mended is read again


@pytest.mark.parametrize("alone", [False, True])
def test_a_read_that_fails_once_stops_nobody_for_ever(serve, wanted, monkeypatch, alone):
    fail, original = threading.Event(), stream_module.StreamReader.read

    def read(self, k, into, stop):
        if fail.is_set() and k == 6:
            fail.clear()
            raise errors.StorageError("the store is out of order")
        original(self, k, into, stop)

    monkeypatch.setattr(stream_module.StreamReader, "read", read)
    server = serve()
    if alone:
        first = Trainee(server, "first", steps=20)
        first.has(21)
    fail.set()
    with pytest.raises(errors.StorageError, match="out of order"):
        Trainee(server, "a").finish()
    again = Trainee(server, "a")
    if alone:
        again.has(10)
        first.allow_all()
        assert first.finish() == all_of(wanted)
    assert again.finish() == all_of(wanted)


# Whoever speaks the protocol badly


class Stranger:
    """A raw connection to the server."""

    def __init__(self, server: ActivationServer, **options: int):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        for option, value in options.items():
            self.socket.setsockopt(getattr(zmq, option), value)
        self.socket.connect(server.address)

    def say(self, *frames: bytes | wire.Message) -> None:
        self.socket.send_multipart([f if isinstance(f, bytes) else wire.encode(f) for f in frames])

    def hears(self, patience: float = 10.0) -> wire.Message:
        assert self.socket.poll(int(patience * 1000)), "no answer"
        return wire.decode(self.socket.recv_multipart()[0])

    def join(self, name: str = "stranger", stop: int = EPOCH) -> "Stranger":
        self.say(wire.Hello(wire.VERSION, name, spec(), 0, stop, ""))
        assert isinstance(self.hears(), wire.Welcome)
        return self


@pytest.fixture
def stranger() -> Iterator[Callable[..., Stranger]]:
    made = []

    def connect(server: ActivationServer, **options: int) -> Stranger:
        made.append(Stranger(server, **options))
        return made[-1]

    yield connect
    for one in made:
        one.socket.close()


def raw(**fields) -> bytes:
    return msgpack.packb(fields)


DEEP = b"\x83\xa4kind\xa4NEXT\xa6cursor" + b"\x91" * 1000 + b"\x00\xa6credit\x01"
SPEC = {"dataset": "synthetic", "hooks": [A], "batch_size": BATCH, "seed": 5, "shards_side_by_side": 2}
HELLO = {"kind": "HELLO", "version": wire.VERSION, "consumer": "a", "stream": SPEC, "cursor": 0, "stop": 1, "host": ""}


@pytest.mark.parametrize(
    ("frames", "code", "sentence"),
    [
        ([b"\xc1\xc1\xc1"], "WireError", "not msgpack"),
        ([b""], "WireError", "not msgpack"),
        ([b"\x00"], "WireError", "not a message"),
        ([b"\x80", b"\x80", b"\x80"], "WireError", "has 3 frames"),
        ([b"x" * 65536], "WireError", "not msgpack"),
        ([DEEP], "WireError", "cursor cannot be"),
        ([raw(kind="NEXT", cursor=0, credit=10**6)], wire.NO_HELLO, "has not said HELLO"),
        ([raw(kind="BYE", cursor=0)], wire.NO_HELLO, "has not said HELLO"),
        ([raw(kind="NEXT", cursor=-1, credit=10**6)], "WireError", "cursor cannot be -1"),
        ([raw(kind="NEXT", cursor=2**63, credit=10**6)], "WireError", "cursor cannot be"),
        ([raw(kind="NEXT", cursor=0.5, credit=10**6)], "WireError", "cursor cannot be 0.5"),
        ([raw(kind="NEXT", cursor=True, credit=10**6)], "WireError", "cursor cannot be True"),
        ([raw(kind="NEXT", cursor=0)], "WireError", "needs exactly the fields cursor, credit"),
        ([raw(kind="STOP")], "WireError", "not a message"),
        ([raw(kind=["NEXT"])], "WireError", "not a message"),
        ([raw(**HELLO | {"version": 1})], "WireError", "version 2 .* and the trainer version 1"),
        ([raw(**HELLO | {"stream": SPEC | {"hooks": []}})], "WireError", "hooks cannot be"),
        ([raw(**HELLO | {"consumer": "a" * 513})], "WireError", "consumer cannot be"),
        ([raw(**HELLO | {"host": "a" * 513})], "WireError", "host cannot be"),
        ([raw(**HELLO | {"cursor": -3})], "WireError", "cursor cannot be -3"),
        ([raw(**HELLO | {"stream": SPEC | {"batch_size": 0}})], "InputError", "at least 1"),
    ],
)  # fmt: skip
def test_nonsense_is_answered_with_a_sentence(serve, stranger, frames, code, sentence):
    server = serve()
    one = stranger(server)
    one.say(*frames)
    answer = one.hears()
    assert isinstance(answer, wire.Error) and answer.code == code
    assert re.search(sentence, answer.sentence)
    one.join(stop=0)  # the connection is as good as before


@pytest.mark.parametrize(
    "message",
    [
        wire.Batch(0),
        wire.Wait("x"),
        wire.End(0),
        wire.Error("x", "y"),
        wire.Welcome(1, (1,), "float32", 1, False, wire.NO_SEGMENT),
        wire.Shared(0, 0, 1),
        wire.Next(0, 0),
        wire.Next(0, 99),
    ],
    ids=lambda message: f"{message.kind} {getattr(message, 'credit', '')}",
)
def test_a_trainer_that_has_joined_is_told_what_is_not_for_it_to_say(serve, stranger, message):
    one = stranger(serve()).join()
    one.say(message)
    answer = one.hears()
    assert isinstance(answer, wire.Error) and answer.code == "WireError"


def test_nothing_that_is_sent_stalls_the_others(serve, stranger, wanted):
    chance = random.Random(1)
    server = serve()
    trainee = Trainee(server, "good", pause=0.01)
    trainee.has(1)
    strangers = [stranger(server) for _ in range(3)]
    good = wire.encode(wire.Hello(wire.VERSION, "x", spec(), 0, 0, ""))
    while trainee.is_alive():
        one = chance.choice(strangers)
        one.say(*[chance.randbytes(chance.choice([0, 1, 30, 2000, 65000])) for _ in range(chance.randrange(1, 4))])
        damaged = bytearray(good)
        damaged[chance.randrange(len(good))] = chance.randrange(256)
        one.say(bytes(damaged))
        one.say(*[b""] * 200)
        strangers[2].say(b"y" * (wire.MAX_HEADER + 1))  # over the limit of a frame: ZeroMQ cuts the connection
        with socket.create_connection(("127.0.0.1", int(server.address.rsplit(":", 1)[1]))) as plain:
            plain.sendall(chance.randbytes(500))
        while strangers[0].socket.poll(0):
            strangers[0].socket.recv_multipart()
    assert trainee.finish() == all_of(wanted)


FLOOD = """
import sys, zmq
one = zmq.Context().socket(zmq.DEALER)
one.connect(sys.argv[1])
message = bytes.fromhex(sys.argv[2])
print("begins", flush=True)
while True:
    one.send(message)
"""


def test_a_flood_of_messages_stalls_nobody(serve, wanted):
    server = serve()
    flood = subprocess.Popen([sys.executable, "-c", FLOOD, server.address, wire.encode(wire.Next(0, 1)).hex()], stdout=subprocess.PIPE)
    try:
        flood.stdout.readline()
        assert Trainee(server, "good").finish() == all_of(wanted)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5
    finally:
        flood.kill()
        flood.wait()
        flood.stdout.close()


def test_a_client_that_reads_nothing_of_what_it_asks_for_is_sent_no_more_than_its_credit(serve, stranger, wanted, gained):
    server = serve(lag="detach", lag_seconds=0.3, window_mib=32)
    one = stranger(server).join()
    one.say(wire.Next(0, 2**62))
    one.say(wire.Next(2**62 // 2, 2**62))  # it says that it has got what it never was sent
    assert Trainee(server, "good").finish() == all_of(wanted)
    sent = gained("bytes_served_total") / (BATCH * WIDTH * 4) - EPOCH
    assert sent <= 2 * server_module.MAX_CREDIT_BATCHES


def test_one_connection_that_says_hello_twice_holds_the_window_only_once(serve, stranger, wanted):
    server = serve(join_seconds=0.3)
    one = stranger(server)
    one.join("first").join("second")
    one.socket.close()
    assert Trainee(server, "good").finish() == all_of(wanted)


# The server goes


def test_where_no_server_is_the_client_says_so_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"  # something listens, and never answers
        began = time.monotonic()
        with pytest.raises(errors.ServerGone, match=address):
            StreamClient(address, spec(), "a", 0, 1, connect_seconds=0.5)
        assert time.monotonic() - began < 5
    with pytest.raises(errors.ServerGone, match=f"no activation server answers at {address}"):
        StreamClient(address, spec(), "a", 0, 1, connect_seconds=0.5)


def test_a_server_that_stops_in_the_middle_is_gone(serve, wanted, monkeypatch):
    monkeypatch.setattr(client_module, "SILENCE_SECONDS", 1.0)
    server = serve()
    trainee = Trainee(server, "a", steps=5)
    trainee.has(6)
    server.stop()
    server.stop()  # once more does no harm
    trainee.allow_all()
    with pytest.raises(errors.ServerGone, match=f"{server.address} has gone silent"):
        trainee.finish()
    # With its cursor it goes to another server, which is a replica by nature.
    assert trainee.got == all_of(wanted, 0, len(trainee.got))
    cursor = len(trainee.got)
    assert Trainee(serve(), "a", cursor=cursor).finish() == all_of(wanted, cursor)


def test_a_server_that_comes_back_at_another_address_is_found_and_the_stream_goes_on_at_its_cursor(serve, wanted, monkeypatch):
    monkeypatch.setattr(client_module, "ASK_AGAIN_SECONDS", 0.3)
    servers = [serve()]
    trainee = Trainee(lambda: servers[-1].address, "a", steps=EPOCH // 2)
    trainee.has(EPOCH // 2 + 1)
    servers[0].stop()
    servers.append(serve())
    assert servers[0].address != servers[1].address
    trainee.allow_all()
    assert trainee.finish() == all_of(wanted)


def test_a_client_that_waits_can_be_stopped(serve):
    server = serve()
    server.expect(spec(), "never", 0, EPOCH)
    trainee = Trainee(server, "a")
    trainee.has(CAPACITY)
    began = time.monotonic()
    trainee.halted.set()
    with pytest.raises(errors.Stopped):
        trainee.finish()
    assert time.monotonic() - began < 5


def test_stopping_does_not_wait_for_the_window_to_fill(serve, monkeypatch):
    read = stream_module.StreamReader.read

    def slowly(self, k, into, stop):
        time.sleep(0.1)
        read(self, k, into, stop)

    monkeypatch.setattr(stream_module.StreamReader, "read", slowly)
    server = serve(window_mib=64)  # 256 batches to read ahead
    trainee = Trainee(server, "a", stop=1000, steps=0)
    trainee.has(1)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 3
    trainee.halted.set()
    trainee.finish()


# Memory


@pytest.mark.parametrize("way", ["shared memory", "socket"])
def test_memory_is_used_again_however_long_a_stream_is(serve, processes, monkeypatch, way):
    if way == "socket":
        monkeypatch.setattr(server_module, "this_host", lambda: "another host")
    monkeypatch.setattr(server_module.ActivationServer, "_close_if_idle", lambda *_: None)  # so that it can be looked at
    server = serve(join_seconds=0.3)
    trainees = [Trainee(server, name, stop=8 * EPOCH, steps=0) for name in ("a", "b")]
    for trainee in trainees:
        trainee.has(1)
    processes.append(killed := Process(server, pause=1000))
    killed.take(1)
    killed.kill()  # with batches on their way
    for trainee in trainees:
        trainee.allow_all()
    assert all(len(trainee.finish()) == 8 * EPOCH for trainee in trainees)
    stream = next(iter(server._streams.values()))
    assert CAPACITY <= stream.memory.count <= CAPACITY + 3 * client_module.CREDIT_BATCHES + 1
    soon(lambda: len(stream.memory.free) == stream.memory.count, "every slot comes back", 10)
    assert len({id(slot) for slot in stream.memory.free}) == stream.memory.count, "none comes back twice"
    assert not stream.memory.dropped and not stream.slots and not stream.alone and not any(stream.memory._loans.values())


def test_memory_of_a_private_read_that_nobody_wants_any_more_comes_back(serve, monkeypatch):
    reading, go_on, original = threading.Event(), threading.Event(), stream_module.StreamReader.read

    def read(self, k, into, stop):
        if k == 3:
            reading.set()
            go_on.wait(PATIENCE)
        original(self, k, into, stop)

    server = serve()
    Trainee(server, "first", cursor=20, steps=0).has(1)
    monkeypatch.setattr(stream_module.StreamReader, "read", read)
    late = Trainee(server, "late")
    assert reading.wait(PATIENCE)
    stream = server._streams[spec()]
    late.halted.set()
    with pytest.raises(errors.Stopped):
        late.finish()
    soon(lambda: "late" not in stream.window.consumers, "it has left")
    free = len(stream.memory.free)
    go_on.set()
    soon(lambda: len(stream.memory.free) == free + 1, "the slot comes back", 10)


def test_a_slot_is_not_used_again_while_a_slow_connection_still_sends_it(serve, wanted, stranger, monkeypatch):
    """What a client takes out of the wire after a long time is what was sent to it, not what the slot held later."""
    credit = 48  # 12 MiB, more than the kernel takes
    monkeypatch.setattr(server_module, "MAX_CREDIT_BATCHES", credit)
    server = serve(lag="detach", lag_seconds=0.1, window_mib=13)
    one = stranger(server, RCVHWM=1, RCVBUF=65536).join(stop=credit)
    one.say(wire.Next(0, credit * BATCH * WIDTH * 4))
    assert len(Trainee(server, "good", stop=4 * EPOCH).finish()) == 4 * EPOCH
    got = []
    while len(got) < credit and one.socket.poll(5000):
        header, *body = one.socket.recv_multipart()
        if isinstance(message := wire.decode(header), wire.Batch):
            got.append((message.index, hashlib.blake2b(body[0]).hexdigest()))
    assert got == all_of(wanted, 0, credit)
