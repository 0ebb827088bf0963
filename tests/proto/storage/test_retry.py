"""Storage faults: what may pass is tried again, what may not is one error that names the object, and no bytes are made up."""

import errno
import uuid

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from support.faults import (
    WRITES,
    ClientPayloadError,
    Damages,
    Latency,
    LostRace,
    LostReply,
    Raises,
    cut_connection,
    faulty,
    flip_a_bit,
    full_disk,
    half,
    slow_down,
    vanished,
    zeros,
)
from support.synthetic import fill, make_dataset

from scopemill.activation_server.stream_reader import StreamReader
from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.proto.dataset import committed_shards, read_commit
from scopemill.proto.errors import CorruptObject, MissingObject, StorageError
from scopemill.proto.layout import DatasetLayout, SaeLayout
from scopemill.proto.storage import retry as patience
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.wiring import Port, Wiring
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

HOOK = "blocks.0.hook_resid_post"
STREAM = StreamSpec("synthetic", (HOOK,), 16, 3, 2)
SAE = SaeLayout("saes/m/h/width_16/jumprelu/1")
RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(patience, "DEADLINE_SECONDS", 0.3)


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path) -> Bucket:
    """Written through fsspec alike; the folder of the second is read by what is tested as an object store would be."""
    return Bucket(f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "bucket"))


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"scopemill_store_{name}_total", labels) or 0.0


def batches(bucket: Bucket, manifest, count: int | None = None) -> list[bytes]:
    reader = StreamReader(bucket, manifest, STREAM)
    try:
        return [bytes(_batch(reader, k)) for k in range(count or reader.batches_per_epoch)]
    finally:
        reader.close()


def _batch(reader: StreamReader, k: int) -> np.ndarray:
    into = np.full(reader.batch_bytes, 0xA5, np.uint8)
    reader.read(k, memoryview(into), 0)
    return into


# The verbs

PASSING = [
    OSError(errno.EBUSY, "Please reduce your request rate."),
    RESET,
    TimeoutError("timed out"),
    ClientPayloadError("Response payload is not completed"),
    OSError(errno.EREMOTEIO, "We encountered an internal error"),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_may_pass_is_tried_again_whatever_was_asked(store, error):
    store.write("folder/object", b"some bytes")
    for ask, wanted in [
        (lambda b: b.read("folder/object"), b"some bytes"),
        (lambda b: bytes(b.read_into("folder/object", memoryview(bytearray(10)))), b"some bytes"),
        (lambda b: b.exists("folder/object"), True),
        (lambda b: b.names("folder"), ["object"]),
        (lambda b: b.find("folder"), ["folder/object"]),
        (lambda b: b.write("folder/object", b"some bytes"), None),
        (lambda b: b.create("folder/object", b"some bytes"), True),
        (lambda b: b.remove("folder/gone"), None),
    ]:
        bucket = faulty(store, Raises(error, times=3))
        assert ask(bucket) == wanted
        assert len(bucket.requests.log) >= 4


@pytest.mark.parametrize(
    "error", [PermissionError("no"), OSError(errno.ENOSPC, "No space left on device"), ValueError("what?")], ids=lambda e: type(e).__name__
)
def test_what_cannot_pass_is_told_at_once(store, error):
    bucket = faulty(store, Raises(error, times=1))
    with pytest.raises(StorageError, match="cannot write .*/folder/object: "):
        bucket.write("folder/object", b"1")
    assert bucket.requests.count("pipe_file") == 1


def test_patience_ends_at_the_deadline_with_the_name_of_the_object(store):
    before = counted("retries", verb="read")
    bucket = faulty(store, slow_down(times=float("inf")))
    with pytest.raises(StorageError, match=r"cannot read .*/folder/object: Please reduce your request rate."):
        bucket.read("folder/object")
    assert counted("retries", verb="read") - before == bucket.requests.count("cat_file") - 1 > 3


def test_whether_an_object_is_there_is_never_guessed(store):
    """fsspec's isfile takes any failure for "no": finished work would be done again."""
    store.write("folder/object", b"1")
    with pytest.raises(StorageError, match="cannot look for"):
        faulty(store, slow_down(times=float("inf"))).exists("folder/object")


@pytest.mark.parametrize("url", ["memory", "s3"])
def test_a_commit_whose_reply_was_lost_is_ours(url, request, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "DEADLINE_SECONDS", 30.0)  # the first request to a server takes its time
    store = Bucket(f"memory://{uuid.uuid4().hex}" if url == "memory" else f"{request.getfixturevalue('s3_url')}/{tmp_path.name}")
    bucket = faulty(store, LostReply(RESET, verbs=WRITES))
    assert bucket.create("commits/1.json", b"ours") is True
    assert bucket.requests.count("pipe_file") == 2
    assert store.read("commits/1.json") == b"ours"


def test_a_commit_that_another_made_first_is_theirs_also_when_replies_are_lost(store):
    for faults in ([], [slow_down(2)], [LostReply(RESET, verbs=WRITES)]):
        path = f"commits/{uuid.uuid4().hex}.json"
        bucket = faulty(store, LostRace(lambda path=path: store.write(path, b"theirs"), path), *faults)
        assert bucket.create(path, b"ours") is False
        assert store.read(path) == b"theirs"


# Reading batches

PASSING_FAULTS = {
    "latency": lambda: [Latency(0.002)],
    "a storm of 503": lambda: [slow_down(3), slow_down(3)],
    "connections cut in the middle": lambda: [cut_connection(3, "/c/")],
    "a flipped bit on the way": lambda: [Damages(flip_a_bit, 1, "/c/")],
    "a short read": lambda: [Damages(half, 1, "/c/")],
    "zeros": lambda: [Damages(zeros, 1, "/c/")],
    "an empty body": lambda: [Damages(lambda data: b"", 1, "/c/")],
}


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_batches_are_right_through_every_fault_that_passes(store, fault, monkeypatch):
    monkeypatch.setattr("scopemill.proto.chunks.CHUNK_BYTES", 512)
    manifest = make_dataset(store, rows=64)
    wanted = batches(store, manifest)
    bucket = faulty(store, *PASSING_FAULTS[fault]())
    assert batches(bucket, manifest) == wanted


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        (slow_down(float("inf"), where="/c/0"), StorageError, "reduce your request rate"),
        (cut_connection(float("inf"), "/c/0"), StorageError, "payload is not completed"),
        (Damages(flip_a_bit, float("inf"), "/c/0"), CorruptObject, "does not match its checksum"),
        (Damages(half, float("inf"), "/c/0"), CorruptObject, "bytes, not the committed"),
        (Damages(zeros, float("inf"), "/c/0"), CorruptObject, "does not match its checksum"),
        (vanished("/c/0"), MissingObject, "is not there"),
    ],
    ids=["503", "cut", "wrong bytes", "short", "zeros", "vanished"],
)
def test_a_fault_that_stays_is_one_error_that_names_the_chunk(store, fault, error, sentence):
    manifest = make_dataset(store)
    with pytest.raises(error, match=sentence) as caught:
        batches(faulty(store, fault), manifest, 1)
    assert "/shards/" in str(caught.value) and "/c/0" in str(caught.value) and "\n" not in str(caught.value)


def test_a_corrupt_chunk_is_read_twice_and_counted(store):
    manifest = make_dataset(store, shards=1)
    before = counted("corrupt_reads")
    bucket = faulty(store, Damages(flip_a_bit, 1, "/c/"))
    batches(bucket, manifest, 1)
    assert counted("corrupt_reads") == before + 1
    with pytest.raises(CorruptObject):
        batches(faulty(store, Damages(flip_a_bit, float("inf"), "/c/")), manifest, 1)
    assert counted("corrupt_reads") == before + 3


def test_a_corrupt_commit_record_is_named(store):
    manifest = make_dataset(store)
    with pytest.raises(CorruptObject, match=r"commits/\d{5}.json carries no checksum"):
        batches(faulty(store, Damages(half, float("inf"), "/commits/")), manifest, 1)


# Writing shards


def buffers(manifest) -> ShardBuffers:
    made = ShardBuffers(manifest)
    rows = manifest.rows_per_shard
    values = {h.name: torch.randn(rows, h.d, generator=torch.Generator().manual_seed(1)) for h in manifest.hooks}
    labels = {"token_id": np.full(rows, 3, np.int32), "document": np.zeros(rows, np.int64), "position": np.arange(rows, dtype=np.int32)}
    fill(made, np.arange(rows), values, labels)
    return made


@pytest.mark.parametrize("times", [1, 5])
def test_a_shard_written_through_storms_is_the_same_objects(store, times):
    manifest = make_dataset(store, shards=1)
    write_shard(store, 5, buffers(manifest), 0)
    layout = DatasetLayout("synthetic")
    wanted = {path: store.read(path) for path in store.find(layout.shard(5)) + [layout.commit(5)]}
    for path in wanted:
        store.remove(path)
    faults = [slow_down(times, WRITES), LostReply(RESET, times, WRITES, "/c/"), LostReply(RESET, 1, WRITES, "/commits/")]
    write_shard(faulty(store, *faults), 5, buffers(manifest), 0)
    assert {path: store.read(path) for path in wanted} == wanted


@pytest.mark.parametrize("where", ["zarr.json", "/c/0", "/commits/"])
def test_a_full_disk_is_told_with_the_object_and_commits_nothing(store, where):
    manifest = make_dataset(store, shards=1)
    with pytest.raises(StorageError, match=f"cannot write .*{where}.*: No space left on device"):
        write_shard(faulty(store, full_disk(where)), 5, buffers(manifest), 0)
    assert committed_shards(store, "synthetic") == {0}
    write_shard(store, 5, buffers(manifest), 0)
    assert read_commit(store, "synthetic", 5).rows == manifest.rows_per_shard


# Checkpoints


def save_checkpoint(bucket: Bucket, step: int) -> None:
    config = TrainConfig(template="quick", widths=[16], sparsities=[1e-3]).saes()[0]
    wiring = Wiring((Port(HOOK, 8, 1.0),))
    loop = Loop(initial_sae(config, wiring.shape, torch.zeros(8)), config, History())
    loop.step_number = step
    checkpoint.save(bucket, SAE, wiring, loop)


def test_a_checkpoint_survives_storms_and_lost_replies(store):
    save_checkpoint(faulty(store, slow_down(3), LostReply(RESET, 1, WRITES, "checkpoint.json")), 10)
    save_checkpoint(faulty(store, slow_down(3)), 20)
    assert checkpoint.steps_of(faulty(store, slow_down(4)), SAE) == [10, 20]
    save_checkpoint(store, 30)
    assert [store.exists(SAE.checkpoint(step).optimizer) for step in (10, 20, 30)] == [False, True, True]
    assert checkpoint.read_record(faulty(store, cut_connection(2)), SAE, 20).step == 20


@pytest.mark.parametrize("where", ["weights", "optimizer", "checkpoint.json"])
def test_a_checkpoint_that_finds_a_full_disk_leaves_the_one_before_whole(store, where):
    save_checkpoint(store, 10)
    before = {path: store.read(path) for path in store.find(SAE.root)}
    with pytest.raises(StorageError, match="No space left on device"):
        save_checkpoint(faulty(store, full_disk(where)), 20)
    assert checkpoint.steps_of(store, SAE) == [10]
    assert {path: store.read(path) for path in before} == before
