"""Hostile messages by the hundred thousand, handled as the server's loop handles them, while an honest trainer is served."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import msgpack
import zmq
from support.synthetic import make_dataset

from scopemill.activation_server.client import StreamClient
from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.order import Order
from scopemill.activation_server.server import ActivationServer
from scopemill.activation_server.shared_memory import this_host
from scopemill.proto import wire
from scopemill.proto.errors import WireError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec

HOOK = "blocks.0.hook_resid_post"
HONEST, OTHER = StreamSpec("synthetic", (HOOK,), 16, 3, 2), StreamSpec("synthetic", (HOOK,), 8, 77, 4)
INPUTS, THROUGH_A_SOCKET, AT_ONCE = 100_000, 5_000, 500
BATCHES = 4_000
ODD = [0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 0.5, True, None, "", "x" * 600, b"\xff", [], [[]], {}, {"a": {}}, "NEXT", float("nan")]


def valid(chance: random.Random) -> wire.Message:
    number = chance.choice([0, 1, 5, 17, 10**6, 2**40, 2**63 - 1])
    consumer = f"stranger {chance.randrange(50)}"
    return chance.choice([
        wire.Hello(wire.VERSION, consumer, OTHER, number, chance.choice([0, 1, 40, 2**63 - 1]), chance.choice(["", "x", this_host()])),
        wire.Hello(wire.VERSION, consumer, OTHER, 0, 40, this_host()),
        wire.Next(number, chance.choice([0, 1, 256, 10**5, 2**63 - 1])),
        wire.Next(chance.randrange(40), 10**4),
        wire.Bye(number), wire.Batch(number), wire.End(number), wire.Wait("x"), wire.Error("x", "y"), wire.Shared(number, 0, 1),
        wire.Welcome(1, (8,), "float32", 4, False, wire.Segment(1, 2, "x", 3)),
    ])  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One message, damaged in one of the ways in which messages are damaged or forged."""
    at = chance.randrange(len(data))
    match chance.randrange(9):
        case 0:
            return data  # replayed
        case 1:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at]
        case 3:
            return data + chance.randbytes(chance.randrange(1, 40))
        case 4:
            return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
        case 5:
            return data[:at] + data[:at] + data[at:]
        case 6:  # a field of another kind
            body = msgpack.unpackb(data)
            place = body["stream"] if "stream" in body and chance.random() < 0.5 else body
            place[chance.choice(list(place))] = chance.choice(ODD)
            return msgpack.packb(body)
        case 7:
            return chance.choice(
                [b"\x91", b"\x81\xa1a", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
            ) * chance.randrange(1, 2000)
        case _:
            return chance.randbytes(chance.choice([0, 1, 2, 60, 3000, wire.MAX_HEADER + 1]))


def inputs(seed: int, count: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(count):
        yield mutated(wire.encode(valid(chance)), chance)


def test_hostile_messages_neither_crash_nor_stall_the_server(bucket: Bucket, monkeypatch):
    manifest = make_dataset(bucket, rows=64)
    server = ActivationServer(bucket, ServerConfig(window_mib=1, join_seconds=0.2), streams=2)
    failures: list[BaseException] = []
    monkeypatch.setattr("scopemill.activation_server.server.log.exception", lambda *args: failures.append(args))
    honest = Honest(server)
    fuzzers = [zmq.Context.instance().socket(zmq.DEALER) for _ in range(2)]
    try:
        for number, one in enumerate(fuzzers):
            one.setsockopt(zmq.LINGER, 0)
            one.setsockopt(zmq.ROUTING_ID, b"fuzzer %d" % number)
            one.connect(server.address)
            one.send(wire.encode(wire.Hello(wire.VERSION, "joined", OTHER, 0, 40, this_host())))
            assert one.poll(5000)
        # As the loop hands them on: from a peer that it can reach, and from one that it cannot.
        handled = threading.Semaphore(0)
        messages = list(inputs(1, INPUTS))
        for start in range(0, INPUTS, AT_ONCE):

            def task(start: int = start) -> None:
                for i, data in enumerate(messages[start : start + AT_ONCE]):
                    server._receive([b"fuzzer 0" if i % 2 else b"nobody", data])
                handled.release()

            server._mailbox.post(task)
            assert handled.acquire(timeout=20)
            emptied(fuzzers[0])
        for data in inputs(2, THROUGH_A_SOCKET):
            if len(data) <= wire.MAX_HEADER:  # above, ZeroMQ itself cuts the connection
                fuzzers[1].send(data)
            emptied(fuzzers[1])
        assert not failures  # each was answered as what it is; none was a surprise
        assert len(server._streams) <= 2
        honest.finish(Order(manifest, HONEST))
    finally:
        for one in fuzzers:
            one.close()
        server.stop()


def emptied(socket: zmq.Socket) -> None:
    while socket.poll(0):
        socket.recv_multipart()


class Honest(threading.Thread):
    """Reads its stream for as long as the others rage, and checks every row of it."""

    def __init__(self, server: ActivationServer):
        super().__init__(daemon=True)
        self._client = StreamClient(server.address, HONEST, "honest", 0, BATCHES)
        self._got: list[list[int]] = []
        self.start()

    def run(self) -> None:
        for _, (rows,) in self._client:
            self._got.append(rows[:, 0].astype(int).tolist())
            time.sleep(0.001)
        self._client.close()

    def finish(self, order: Order) -> None:
        self.join(60)
        wanted = [[p.shard * 64 + row for p in order.pieces(k) for row in range(p.start, p.stop)] for k in range(BATCHES)]
        assert self._got == wanted


def test_decoding_gives_a_message_or_the_one_error():
    outcomes = Counter()
    for data in inputs(3, 20_000):
        try:
            message = wire.decode(data)
        except WireError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
            outcomes["refused"] += 1
        else:
            assert wire.decode(wire.encode(message)) == message
            outcomes[message.kind] += 1
    assert outcomes["refused"] > 10_000 and outcomes["HELLO"] > 200 and outcomes["NEXT"] > 200


def test_a_server_takes_no_more_streams_at_a_time_than_it_was_started_for(bucket: Bucket):
    make_dataset(bucket)
    server = ActivationServer(bucket, ServerConfig(window_mib=1), streams=1)
    try:
        first = StreamClient(server.address, HONEST, "a", 0, 4)
        try:
            StreamClient(server.address, OTHER, "b", 0, 4)
            raise AssertionError("it was taken")
        except WireError as error:
            assert "exceeds the limit of 1 streams at a time that this server was started with" in str(error)
        first.close()
    finally:
        server.stop()
