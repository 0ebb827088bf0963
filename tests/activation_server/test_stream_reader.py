"""What the reader puts together from chunk objects, against the same rows gathered by zarr-python."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from support.synthetic import make_dataset

from scopemill.activation_server import chunk_reader as chunk_module
from scopemill.activation_server import stream_reader as reader_module
from scopemill.activation_server.chunk_reader import ChunkFetcher
from scopemill.activation_server.order import Order
from scopemill.activation_server.stream_reader import StreamReader
from scopemill.proto.dataset import STORED_DTYPES, DatasetManifest, committed_shards
from scopemill.proto.errors import CorruptObject, MissingObject, ShardLost, Stopped, StorageError
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.proto.wire import StreamSpec

A, B = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunk objects of a few rows, so that a small shard has many, each with blocks that fill it unevenly."""
    monkeypatch.setattr("scopemill.proto.chunks.CHUNK_BYTES", 256)
    monkeypatch.setattr("scopemill.proto.chunks.BLOCK_BYTES", 100)


@pytest.fixture
def whole_chunks(monkeypatch):
    """The bucket is read as an object store is: a chunk object at once."""
    monkeypatch.setattr(Bucket, "is_local", False)


@pytest.fixture(params=["blocks", "whole chunks"])
def both_ways(request):
    if request.param == "whole chunks":
        request.getfixturevalue("whole_chunks")
    return request.param


def spec(hooks=(A,), batch=12, k=2, seed=3, dataset="synthetic") -> StreamSpec:
    return StreamSpec(dataset, tuple(hooks), batch, seed, k)


def read(reader: StreamReader, manifest: DatasetManifest, stream: StreamSpec, k: int, stop: int = 0) -> list[np.ndarray]:
    """Batch k as one array per hook; of those after ``stop`` none is read ahead."""
    into = np.full(reader.batch_bytes, 0xA5, np.uint8)
    reader.read(k, memoryview(into), stop)
    flat, arrays = into.view(STORED_DTYPES[manifest.dtype]), []
    for hook in stream.hooks:
        d = manifest.hook(hook).d
        arrays.append(flat[: stream.batch_size * d].reshape(stream.batch_size, d))
        flat = flat[stream.batch_size * d :]
    assert not len(flat)
    return arrays


def gathered(bucket: Bucket, manifest: DatasetManifest, stream: StreamSpec, k: int) -> list[np.ndarray]:
    """The same batch, row by row from zarr-python."""
    order = Order(manifest, stream)
    arrays = []
    for hook in stream.hooks:
        parts = []
        for piece in order.pieces(k):
            array = zarr.open_array(f"{bucket.url}/{DatasetLayout(manifest.dataset).array(piece.shard, hook)}", mode="r")
            parts.append(array[piece.start : piece.stop])
        arrays.append(np.concatenate(parts))
    return arrays


def assert_same_bits(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == np.ascontiguousarray(other).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "shards", "batch", "k"), [(48, 4, 12, 2), (48, 5, 31, 3), (30, 3, 90, 3), (30, 3, 7, 8), (24, 4, 2, 4)])
def test_batches_are_the_rows_that_zarr_gives(bucket, small_chunks, both_ways, dtype, rows, shards, batch, k):
    manifest = make_dataset(bucket, hooks={A: 8, B: 5}, shards=shards, rows=rows, dtype=dtype)
    assert manifest.array(A).chunks >= 2
    stream = spec((A, B), batch, k)
    reader = StreamReader(bucket, manifest, stream)
    for index in range(2 * reader.batches_per_epoch):
        assert_same_bits(read(reader, manifest, stream, index), gathered(bucket, manifest, stream, index))
    reader.close()


def test_row_r_is_the_same_token_at_every_hook_in_whatever_order_they_are_asked_for(bucket, small_chunks, both_ways):
    manifest = make_dataset(bucket, hooks={A: 8, B: 3}, shards=4, rows=48)
    stream = spec((B, A, B))
    reader = StreamReader(bucket, manifest, stream)
    for index in range(reader.batches_per_epoch):
        first, second, third = (array[:, 0] for array in read(reader, manifest, stream, index))
        rows = [piece.shard * 48 + row for piece in Order(manifest, stream).pieces(index) for row in range(piece.start, piece.stop)]
        assert first.tolist() == second.tolist() == third.tolist() == rows
    reader.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of many small chunks; the patch has to hold while it is written and while it is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scopemill.proto.chunks.CHUNK_BYTES", 256)
        patch.setattr("scopemill.proto.chunks.BLOCK_BYTES", 100)
        bucket = Bucket(str(tmp_path_factory.mktemp("reader")))
        manifest = make_dataset(bucket, hooks={A: 8}, shards=5, rows=36)
        stream = spec(batch=11, k=2)
        wanted = [gathered(bucket, manifest, stream, index) for index in range(2 * Order(manifest, stream).batches_per_epoch)]
        yield bucket, manifest, stream, wanted


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), local=st.booleans())
def test_any_order_of_batches_is_right(dataset, data, local):
    bucket, manifest, stream, wanted = dataset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bucket, "is_local", local)
        reader = StreamReader(bucket, manifest, stream)
    for index in data.draw(st.lists(st.integers(0, len(wanted) - 1), min_size=1, max_size=12)):
        assert_same_bits(read(reader, manifest, stream, index), wanted[index])
    reader.close()


# Rows that fill whole batches, so that every chunk is needed; with batches of two rows a batch takes none of some shards.
@pytest.mark.parametrize(("batch", "k"), [(12, 2), (32, 4), (2, 4)])
def test_an_epoch_in_order_reads_every_chunk_object_once(bucket, small_chunks, both_ways, batch, k):
    manifest = make_dataset(bucket, hooks={A: 8, B: 4}, shards=4, rows=48)
    stream = spec((A, B), batch, k)
    reader = StreamReader(bucket, manifest, stream)
    stored = sum(
        Path(bucket.url, path).stat().st_size
        for path in bucket.find("activations")
        if "/c/" in path and path.split(".zarr/")[1].split("/")[0] in (A, B)
    )
    values = 2 * 48 * (8 + 4) * 4 * 2  # without the chunks' own checksums
    for epoch in (1, 2):
        for index in range((epoch - 1) * reader.batches_per_epoch, epoch * reader.batches_per_epoch):
            read(reader, manifest, stream, index, stop=epoch * reader.batches_per_epoch)
        assert reader.bytes_read == epoch * (stored if both_ways == "whole chunks" else values)
    reader.close()


@pytest.mark.parametrize(("shards", "k", "rows"), [(4, 2, 48), (5, 2, 48), (3, 4, 48), (1, 1, 48), (2, 2, 8)])
def test_the_next_shards_are_on_their_way_before_the_present_ones_end(bucket, small_chunks, whole_chunks, monkeypatch, shards, k, rows):
    """With a stop far ahead; and even so each chunk object is read once an epoch."""
    manifest = make_dataset(bucket, hooks={A: 8}, shards=shards, rows=rows)
    stream = spec(batch=k * 4, k=k)
    order, fetched = Order(manifest, stream), []
    original = ChunkFetcher._fetch
    monkeypatch.setattr(ChunkFetcher, "_fetch", lambda self, shard, array, i: fetched.append((shard, i)) or original(self, shard, array, i))
    reader = StreamReader(bucket, manifest, stream)
    for index in range(3 * reader.batches_per_epoch - 1):
        assert_same_bits(read(reader, manifest, stream, index, stop=10**9), gathered(bucket, manifest, stream, index))
        following = order.shards(order.next_group(index))
        last = order.next_group(index) == index + 1
        if last and len(following) == len(order.shards(index)) and manifest.array(A).chunks > 1:
            deadline = time.monotonic() + 20
            while not {(shard, 0) for shard in following} <= set(fetched[-2 * k :]) and time.monotonic() < deadline:
                time.sleep(0.001)  # they are submitted, and begin on a thread
            assert {(shard, 0) for shard in following} <= set(fetched[-2 * k :])
    assert fetched and all(fetched.count(chunk) <= 4 for chunk in fetched)
    reader.close()


def test_nothing_is_read_ahead_of_what_anybody_will_ask_for(bucket, small_chunks, whole_chunks):
    manifest = make_dataset(bucket, hooks={A: 8}, shards=4, rows=48)
    stream = spec(batch=12, k=2)
    reader = StreamReader(bucket, manifest, stream)
    for index in range(reader.batches_per_epoch // 2):  # one group of two
        read(reader, manifest, stream, index, stop=reader.batches_per_epoch // 2)
    reader.close()
    array = manifest.array(A)
    assert reader.bytes_read == 2 * array.chunks * array.chunk_bytes


def test_memory_for_chunks_is_reused(bucket, small_chunks, whole_chunks, monkeypatch):
    made = []

    def counted(size):
        made.append(size)
        return bytearray(size)

    monkeypatch.setattr(chunk_module, "bytearray", counted, raising=False)
    manifest = make_dataset(bucket, hooks={A: 8, B: 4}, shards=6, rows=96)
    stream = spec((A, B), batch=12, k=2)
    reader = StreamReader(bucket, manifest, stream)
    for index in range(4 * reader.batches_per_epoch):
        read(reader, manifest, stream, index, stop=4 * reader.batches_per_epoch)
    reader.close()
    lanes = 2 * 2  # hooks times shards side by side; each has a chunk in use and one on its way
    assert lanes <= len(made) <= 2 * lanes < 6 * manifest.array(A).chunks


def chunk_path(bucket: Bucket, manifest: DatasetManifest, stream: StreamSpec, k: int, hook: str = A) -> tuple[int, str]:
    """A shard that batch k reads, and the object of the chunk that it begins in."""
    piece = Order(manifest, stream).pieces(k)[-1]
    array = manifest.array(hook)
    return piece.shard, f"{DatasetLayout(manifest.dataset).array(piece.shard, hook)}/{array.chunk_key(piece.start // array.chunk_rows)}"


def flipped(data: bytes) -> bytes:
    return data[:37] + bytes([data[37] ^ 1]) + data[38:]


@pytest.mark.parametrize(
    ("damage", "error", "sentence"),
    [
        (flipped, CorruptObject, "does not match its checksum"),
        (lambda data: data[:-5], CorruptObject, "bytes, not the committed"),
        (lambda data: data + b"x", StorageError, "but at most|bytes, not the committed"),
        (lambda data: b"", CorruptObject, "has 0 bytes"),
        (None, MissingObject, "is not there"),
    ],
    ids=["a flipped bit", "too short", "too long", "empty", "missing"],
)
def test_a_damaged_chunk_is_an_error_that_names_the_object(bucket, small_chunks, both_ways, damage, error, sentence):
    manifest = make_dataset(bucket, hooks={A: 8, B: 4}, shards=4, rows=48)
    stream = spec((B, A))
    _, path = chunk_path(bucket, manifest, stream, 0)
    whole = bucket.read(path)
    bucket.remove(path)
    if damage:
        bucket.write(path, damage(whole))
    reader = StreamReader(bucket, manifest, stream)
    with pytest.raises(error, match=sentence) as raised:
        read(reader, manifest, stream, 0)
    assert path in str(raised.value)
    reader.close()


def test_a_chunk_whose_own_checksum_is_wrong_is_an_error_too(bucket, small_chunks, whole_chunks):
    manifest = make_dataset(bucket, hooks={A: 8}, shards=4, rows=48)
    _, path = chunk_path(bucket, manifest, spec(), 0)
    bucket.write(path, bucket.read(path)[:-4] + b"\0\0\0\0")
    reader = StreamReader(bucket, manifest, spec())
    with pytest.raises(CorruptObject, match="does not match its checksum"):
        read(reader, manifest, spec(), 0)
    reader.close()


def test_a_block_that_was_damaged_on_its_way_is_read_once_more_and_counted(bucket, small_chunks, monkeypatch):
    manifest = make_dataset(bucket, hooks={A: 8}, shards=4, rows=48)
    original, damaged = Bucket.read_at, []

    def read_at(file, place, start, into):
        n = original(file, place, start, into)
        if not damaged:
            damaged.append(place)
            into[3] ^= 1
        return n

    monkeypatch.setattr(Bucket, "read_at", staticmethod(read_at))
    before = REGISTRY.get_sample_value("scopemill_store_corrupt_reads_total")
    reader = StreamReader(bucket, manifest, spec())
    assert_same_bits(read(reader, manifest, spec(), 0), gathered(bucket, manifest, spec(), 0))
    assert REGISTRY.get_sample_value("scopemill_store_corrupt_reads_total") == before + 1
    reader.close()


def test_a_closed_reader_leaves_no_file_open(bucket, small_chunks):
    manifest = make_dataset(bucket, shards=4, rows=48)
    reader = StreamReader(bucket, manifest, spec())
    read(reader, manifest, spec(), 0)
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    assert any(bucket.url in path for path in opened)
    reader.close()
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    assert not any(bucket.url in path for path in opened)


def test_a_shard_that_was_never_committed_is_missing(bucket, small_chunks):
    manifest = make_dataset(bucket, shards=4, rows=48)
    shard, _ = chunk_path(bucket, manifest, spec(), 0)
    bucket.remove(DatasetLayout(manifest.dataset).commit(shard))
    reader = StreamReader(bucket, manifest, spec())
    with pytest.raises(MissingObject, match=f"batch 0 needs shard {shard} of .*, which is not committed"):
        read(reader, manifest, spec(), 0)
    reader.close()


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_after_a_read_that_failed_the_reader_goes_on(bucket, small_chunks, both_ways, at):
    """An object store that fails now and then must not leave the reader in a state of its own."""
    manifest = make_dataset(bucket, shards=2, rows=48)
    stream = spec(batch=24)
    _, path = chunk_path(bucket, manifest, stream, at)
    whole = bucket.read(path)
    bucket.write(path, flipped(whole))
    reader = StreamReader(bucket, manifest, stream)
    failures = 0
    for index in range(reader.batches_per_epoch):
        try:
            read(reader, manifest, stream, index)
        except CorruptObject:
            failures += 1
            with pytest.raises(CorruptObject):
                read(reader, manifest, stream, index)
            bucket.write(path, whole)
        assert_same_bits(read(reader, manifest, stream, index), gathered(bucket, manifest, stream, index))
    assert failures == 1
    reader.close()


def test_a_closed_reader_leaves_no_thread(bucket, small_chunks, whole_chunks):
    before = set(threading.enumerate())
    manifest = make_dataset(bucket, shards=4, rows=48)
    reader = StreamReader(bucket, manifest, spec())
    read(reader, manifest, spec(), 0)
    reader.close()
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


# Rolling mode


def roll(bucket: Bucket, low: int) -> None:
    bucket.write(DatasetLayout("synthetic").rolling, checksummed_record({"low": low}))


def withheld(bucket: Bucket, shard: int) -> Callable[[], None]:
    """Take a shard's commit away; call it to give it back."""
    path = DatasetLayout("synthetic").commit(shard)
    record = bucket.read(path)
    bucket.remove(path)
    return lambda: bucket.write(path, record)


def test_in_rolling_mode_a_batch_waits_until_its_shards_are_made(bucket, monkeypatch):
    monkeypatch.setattr(reader_module, "ROLLING_POLL_SECONDS", 0.01)
    manifest, stream = make_dataset(bucket, shards=4, rows=24), spec()
    order, reader = Order(manifest, stream), StreamReader(bucket, manifest, stream)
    first_of_the_second_group = order.next_group(0)
    give_back = withheld(bucket, order.shards(first_of_the_second_group)[1])
    roll(bucket, 0)
    wanted = {k: gathered(bucket, manifest, stream, k) for k in range(first_of_the_second_group + 1)}
    got: dict[int, list[np.ndarray]] = {}
    thread = threading.Thread(target=lambda: got.update({k: read(reader, manifest, stream, k, stop=99) for k in wanted}))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    give_back()
    thread.join(20)
    assert not thread.is_alive() and all(np.array_equal(got[k][0], wanted[k][0]) for k in wanted)
    reader.close()


def test_in_rolling_mode_a_batch_whose_shards_are_gone_is_told_as_such(bucket):
    manifest, stream = make_dataset(bucket, shards=4, rows=24), spec()
    reader = StreamReader(bucket, manifest, stream)
    withheld(bucket, Order(manifest, stream).shards(0)[0])
    roll(bucket, 2)
    with pytest.raises(MissingObject, match=r"batch 0 needs shard \d of .*, which was deleted, because every trainer"):
        read(reader, manifest, stream, 0)
    assert read(reader, manifest, stream, 4)  # of the group that is there
    reader.close()


def test_a_read_that_waits_for_a_shard_can_be_interrupted(bucket):
    manifest, stream = make_dataset(bucket, shards=4, rows=24), spec()
    reader = StreamReader(bucket, manifest, stream)
    withheld(bucket, Order(manifest, stream).shards(0)[0])
    roll(bucket, 0)
    threading.Timer(0.1, reader.interrupt).start()
    with pytest.raises(Stopped, match="stopped while batch 0 waited for shard"):
        read(reader, manifest, stream, 0)
    reader.close()


# Damaged shards


def damage(bucket: Bucket, path: str) -> bytes:
    whole = bucket.read(path)
    bucket.write(path, whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    return whole


def read_whole(reader: StreamReader, k: int) -> bytes:
    into = np.empty(reader.batch_bytes, np.uint8)
    reader.read_whole(k, memoryview(into), 99)
    return into.tobytes()


@pytest.mark.parametrize("what", ["chunk", "missing chunk", "record"])
def test_a_damaged_shard_is_taken_back(bucket, both_ways, what):
    manifest, stream = make_dataset(bucket, shards=4, rows=24), spec()
    shard, layout = Order(manifest, stream).shards(0)[1], DatasetLayout("synthetic")
    path = layout.commit(shard) if what == "record" else f"{layout.array(shard, A)}/c/0/0"
    bucket.remove(path) if what == "missing chunk" else damage(bucket, path)
    reader = StreamReader(bucket, manifest, stream)
    with pytest.raises(ShardLost, match=f"shard {shard} is taken back, to be made again: .*{path}"):
        read_whole(reader, 0)
    assert committed_shards(bucket, "synthetic") == set(range(4)) - {shard}
    make_dataset(bucket, shards=4, rows=24)
    assert read_whole(reader, 0) == b"".join(x.tobytes() for x in gathered(bucket, manifest, stream, 0))
    reader.close()


def test_in_rolling_mode_a_damaged_shard_is_waited_for_until_it_is_made_again(bucket, both_ways, monkeypatch):
    monkeypatch.setattr(reader_module, "ROLLING_POLL_SECONDS", 0.01)
    manifest, stream = make_dataset(bucket, shards=4, rows=24), spec()
    wanted = b"".join(x.tobytes() for x in gathered(bucket, manifest, stream, 0))
    shard, layout = Order(manifest, stream).shards(0)[0], DatasetLayout("synthetic")
    damage(bucket, f"{layout.array(shard, A)}/c/0/0")
    roll(bucket, 0)
    reader, got = StreamReader(bucket, manifest, stream), []
    thread = threading.Thread(target=lambda: got.append(read_whole(reader, 0)))
    thread.start()
    deadline = time.monotonic() + 20
    while bucket.exists(layout.commit(shard)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert committed_shards(bucket, "synthetic") == set(range(4)) - {shard}
    make_dataset(bucket, shards=4, rows=24)
    thread.join(20)
    assert got == [wanted]
    reader.close()


def test_a_shard_that_is_damaged_again_and_again_ends_the_stream(bucket, monkeypatch):
    manifest, stream = make_dataset(bucket, shards=4, rows=24), spec()
    shard, layout = Order(manifest, stream).shards(0)[0], DatasetLayout("synthetic")
    damage(bucket, f"{layout.array(shard, A)}/c/0/0")
    roll(bucket, 0)
    record = bucket.read(layout.commit(shard))
    monkeypatch.setattr(reader_module, "take_back", lambda *_: bucket.write(layout.commit(shard), record))
    with pytest.raises(CorruptObject, match="does not match its checksum"):
        read_whole(StreamReader(bucket, manifest, stream), 0)
