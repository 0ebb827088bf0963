"""The dataset on disk: zarr reads what we write and we read what zarr writes, and no byte that was not committed gets through."""

import json
import zlib

import google_crc32c
import numpy as np
import pytest
import s3fs
import torch
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic import fill, make_dataset
from zarr.storage import FsspecStore

from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.proto import chunks
from scopemill.proto.chunks import ArraySpec, chunk_parts, read_chunk
from scopemill.proto.dataset import (
    ROW_LABELS,
    DatasetManifest,
    committed_shards,
    pack_vector,
    read_commit,
    read_manifest,
    refuse_other_identity,
    vector,
)
from scopemill.proto.errors import Conflict, CorruptObject, MissingObject, StorageError
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record

HOOKS = {"blocks.0.hook_resid_post": 8, "blocks.3.attn.hook_z": 12}
ROWS = 60
LAYOUT = DatasetLayout("synthetic")
CRC32C_TABLE = np.zeros(256, dtype=np.uint64)
for _byte in range(256):
    _crc = _byte
    for _ in range(8):
        _crc = _crc >> 1 ^ (0x82F63B78 if _crc & 1 else 0)
    CRC32C_TABLE[_byte] = _crc


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Arrays of a few hundred bytes have several chunks."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 640)


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Bucket:
    return Bucket(str(tmp_path / "bucket") if request.param == "local" else f"{request.getfixturevalue('s3_url')}/{tmp_path.name}")


@pytest.fixture
def manifest(bucket) -> DatasetManifest:
    return make_dataset(bucket, hooks=HOOKS, shards=2, rows=ROWS)


def zarr_group(bucket: Bucket, shard: int, mode: str = "r") -> zarr.Group:
    """A shard as zarr opens it. On S3 through a client whose connections close by themselves; one of zarr's own would stay open."""
    place = bucket.place(LAYOUT.shard(shard))
    if not place.startswith("s3://"):
        return zarr.open_group(place, mode=mode)
    client = AsyncFileSystemWrapper(s3fs.S3FileSystem(use_listings_cache=False), asynchronous=True)
    return zarr.open_group(FsspecStore(client, path=place.removeprefix("s3://"), read_only=True), mode=mode)


def read_array(bucket: Bucket, spec: ArraySpec, shard: int = 0) -> np.ndarray:
    """A whole array as the activation server reads it: chunk by chunk, against the commit record."""
    checksums = read_commit(bucket, "synthetic", shard).checksums[spec.name]
    assert len(checksums) == spec.chunks
    buffer = memoryview(bytearray(spec.chunk_bytes))
    folder = LAYOUT.array(shard, spec.name)
    return np.concatenate([read_chunk(bucket, folder, spec, i, crc, buffer).copy() for i, crc in enumerate(checksums)])


def all_arrays(manifest: DatasetManifest) -> list[ArraySpec]:
    return [manifest.array(hook.name) for hook in manifest.hooks] + manifest.label_arrays


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum, by the table."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ int(CRC32C_TABLE[(crc ^ byte) & 0xFF])
    return crc ^ 0xFFFFFFFF


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even, on the bits of float32."""
    bits = x.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def test_zarr_reads_the_rows_that_were_written(store):
    manifest = make_dataset(store, hooks=HOOKS, shards=2, rows=ROWS)
    for shard in range(2):
        group = zarr_group(store, shard)
        assert sorted(group.array_keys()) == sorted([*HOOKS, "token_id", "document", "position"])
        for name, d in HOOKS.items():
            assert group[name].shape == (ROWS, d)
            assert group[name].dtype == np.float32
            np.testing.assert_array_equal(group[name][:, 0], np.arange(ROWS) + shard * ROWS)
        np.testing.assert_array_equal(group["document"][:], np.full(ROWS, shard))
        np.testing.assert_array_equal(group["position"][:], np.arange(ROWS))
        np.testing.assert_array_equal(group["token_id"][:], np.full(ROWS, 3))
        for spec in all_arrays(manifest):
            np.testing.assert_array_equal(read_array(store, spec, shard), group[spec.name][:])


def test_bfloat16_is_stored_as_its_bits_and_says_so(bucket):
    manifest = make_dataset(bucket, hooks=HOOKS, shards=1, rows=ROWS, dtype="bfloat16")
    written = ShardBuffers(manifest)
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, ROWS)[:, None]
    x[0] = torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, -1.00390625, 3e38, -1e-40, 2.0**-133])  # ties, the ends, subnormals
    rows = {"blocks.0.hook_resid_post": x, "blocks.3.attn.hook_z": torch.zeros(ROWS, 12)}
    fill(written, np.arange(ROWS), rows, {name: np.zeros(ROWS) for name in ROW_LABELS})
    write_shard(bucket, 7, written, dropped_outliers=0)
    array = zarr_group(bucket, 7)["blocks.0.hook_resid_post"]
    assert array.dtype == np.uint16
    assert array.attrs["logical_dtype"] == "bfloat16"
    np.testing.assert_array_equal(array[:], bfloat16_bits(x.numpy()))
    assert "logical_dtype" not in zarr_group(bucket, 7)["document"].attrs


def test_an_array_says_how_it_is_stored(bucket, manifest):
    for spec in all_arrays(manifest):
        stored = json.loads(bucket.read(f"{LAYOUT.array(1, spec.name)}/zarr.json"))
        assert stored["zarr_format"] == 3
        assert [codec["name"] for codec in stored["codecs"]] == ["bytes", "crc32c"]
        assert stored["codecs"][0]["configuration"] == {"endian": "little"}
        assert tuple(stored["shape"]) == spec.shape
        assert tuple(stored["chunk_grid"]["configuration"]["chunk_shape"]) == spec.chunk_shape
        objects = [path for path in bucket.find(LAYOUT.array(1, spec.name)) if not path.endswith("zarr.json")]
        assert objects == sorted(f"{LAYOUT.array(1, spec.name)}/{spec.chunk_key(i)}" for i in range(spec.chunks))
    assert manifest.array("blocks.0.hook_resid_post").chunks == 3, "or this would not look at several"


def test_a_chunk_is_its_raw_bytes_and_their_crc32c(bucket, manifest):
    spec = manifest.array("blocks.0.hook_resid_post")
    rows = zarr_group(bucket, 0)[spec.name][:]
    for i, committed in enumerate(read_commit(bucket, "synthetic", 0).checksums[spec.name]):
        raw = rows[i * spec.chunk_rows : (i + 1) * spec.chunk_rows].tobytes()
        assert bucket.read(f"{LAYOUT.array(0, spec.name)}/{spec.chunk_key(i)}") == raw + crc32c(raw).to_bytes(4, "little")
        assert committed == crc32c(raw)


def test_the_checksum_is_the_one_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283
    assert chunk_parts(np.frombuffer(b"123456789", dtype=np.uint8))[0] == 0xE3069283
    assert zlib.crc32(b"123456789") != 0xE3069283


def test_a_chunk_that_zarr_wrote_is_read(bucket, manifest):
    group = zarr_group(bucket, 0, mode="r+")
    generator = np.random.default_rng(0)
    for spec in all_arrays(manifest):
        values = generator.integers(1, 1000, spec.shape).astype(spec.dtype)
        group[spec.name][:] = values
        buffer = memoryview(bytearray(spec.chunk_bytes))
        for i in range(spec.chunks):
            expected = values[i * spec.chunk_rows : (i + 1) * spec.chunk_rows]
            read = read_chunk(bucket, LAYOUT.array(0, spec.name), spec, i, crc32c(expected.tobytes()), buffer)
            np.testing.assert_array_equal(read, expected)
            assert read.dtype == spec.dtype


def test_a_chunk_is_read_without_copying_it(bucket, manifest):
    spec = manifest.array("blocks.0.hook_resid_post")
    memory = np.zeros(spec.chunk_bytes, dtype=np.uint8)
    crc = read_commit(bucket, "synthetic", 0).checksums[spec.name][0]
    assert np.shares_memory(read_chunk(bucket, LAYOUT.array(0, spec.name), spec, 0, crc, memoryview(memory)), memory)


def test_a_missing_chunk_is_an_error_and_not_zeros(store):
    spec = make_dataset(store, hooks=HOOKS, shards=1, rows=ROWS).array("blocks.3.attn.hook_z")
    path = f"{LAYOUT.array(0, spec.name)}/{spec.chunk_key(1)}"
    store.remove(path)
    assert not zarr_group(store, 0)[spec.name][spec.chunk_rows : 2 * spec.chunk_rows].any(), "zarr itself would not say a word"
    with pytest.raises(MissingObject) as caught:
        read_array(store, spec)
    assert store.place(path) in str(caught.value)


@pytest.mark.parametrize("at", [0, 17, -5, -4, -1], ids=["first", "middle", "last of the data", "checksum", "last"])
def test_a_chunk_with_one_bit_flipped_is_corrupt(bucket, manifest, at):
    spec = manifest.array("blocks.0.hook_resid_post")
    path = f"{LAYOUT.array(0, spec.name)}/{spec.chunk_key(2)}"
    data = bytearray(bucket.read(path))
    data[at] ^= 0x10
    bucket.write(path, data)
    with pytest.raises(CorruptObject) as caught:
        read_array(bucket, spec)
    assert bucket.place(path) in str(caught.value)


def test_a_chunk_in_the_place_of_another_is_corrupt_though_its_checksum_fits(bucket, manifest):
    spec = manifest.array("blocks.0.hook_resid_post")
    first, second = (f"{LAYOUT.array(0, spec.name)}/{spec.chunk_key(i)}" for i in range(2))
    bucket.write(first, bucket.read(second))
    with pytest.raises(CorruptObject) as caught:
        read_array(bucket, spec)
    assert bucket.place(first) in str(caught.value)


def test_a_chunk_of_another_shard_is_corrupt(bucket, manifest):
    spec = manifest.array("blocks.0.hook_resid_post")
    here, there = (f"{LAYOUT.array(shard, spec.name)}/{spec.chunk_key(0)}" for shard in range(2))
    bucket.write(here, bucket.read(there))
    with pytest.raises(CorruptObject):
        read_array(bucket, spec)
    assert read_array(bucket, spec, shard=1).shape == spec.shape


@pytest.mark.parametrize("keep", [0, 3, 4, 100, -5, -4, -1])
def test_a_truncated_chunk_is_corrupt(bucket, manifest, keep):
    spec = manifest.array("blocks.0.hook_resid_post")
    path = f"{LAYOUT.array(0, spec.name)}/{spec.chunk_key(0)}"
    bucket.write(path, bucket.read(path)[:keep])
    with pytest.raises(CorruptObject) as caught:
        read_array(bucket, spec)
    assert bucket.place(path) in str(caught.value)


def test_a_chunk_that_is_too_long_is_refused(store):
    spec = make_dataset(store, hooks=HOOKS, shards=1, rows=ROWS).array("blocks.0.hook_resid_post")
    path = f"{LAYOUT.array(0, spec.name)}/{spec.chunk_key(0)}"
    store.write(path, store.read(path), b"\0")
    with pytest.raises(StorageError) as caught:
        read_array(store, spec)
    assert store.place(path) in str(caught.value)


@given(st.integers(1, 5000), st.one_of(st.none(), st.integers(1, 64)), st.sampled_from([np.dtype("<u2"), np.dtype("<f4"), np.dtype("<i8")]))
@settings(deadline=None)
def test_chunks_are_equal_cover_the_array_and_are_as_large_as_allowed(rows, width, dtype):
    spec = ArraySpec.of("x", rows, width, dtype)
    row_bytes = dtype.itemsize * (width or 1)
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * row_bytes <= 640]
    assert spec.chunk_rows == max(fitting, default=1)
    assert spec.chunks * spec.chunk_rows == rows
    assert spec.chunk_bytes == spec.chunk_rows * row_bytes + 4


def test_a_commit_counts_what_was_written(bucket, manifest):
    assert committed_shards(bucket, "synthetic") == {0, 1}
    commit = read_commit(bucket, "synthetic", 1)
    assert (commit.shard, commit.rows, commit.dropped_outliers) == (1, ROWS, 0)
    assert set(commit.checksums) == {spec.name for spec in all_arrays(manifest)}
    for name in HOOKS:
        x = zarr_group(bucket, 1)[name][:].astype(np.float64)
        sums = commit.sums[name]
        assert sums.count == ROWS
        np.testing.assert_allclose(vector(sums.sum_x), x.sum(0), rtol=1e-12, atol=1e-12)
        assert sums.sum_squared_norm == pytest.approx((x**2).sum(), rel=1e-12)
        assert sums.max_norm == pytest.approx(np.sqrt((x**2).sum(1).max()), rel=1e-12)


def test_a_row_that_is_not_kept_goes_nowhere(bucket):
    manifest = make_dataset(bucket, hooks=HOOKS, shards=1, rows=ROWS)
    buffers = filled(ShardBuffers(manifest), 1.5)
    before = [buffers.stored(spec).tobytes() for spec in manifest.arrays]
    fill(
        buffers, np.array([ROWS, ROWS]), {h.name: torch.full((2, h.d), 9.0) for h in manifest.hooks}, {n: np.full(2, 9) for n in ROW_LABELS}
    )
    assert [buffers.stored(spec).tobytes() for spec in manifest.arrays] == before


def test_a_commit_is_written_last(bucket, manifest, monkeypatch):
    seen = []
    monkeypatch.setattr(Bucket, "create", lambda self, path, data: seen.append((path, len(self.find(LAYOUT.shard(5))))) or True)
    write_shard(bucket, 5, filled(ShardBuffers(manifest), 0.0), dropped_outliers=0)
    objects = 1 + sum(1 + spec.chunks for spec in all_arrays(manifest))
    assert seen == [(LAYOUT.commit(5), objects)]
    assert committed_shards(bucket, "synthetic") == {0, 1}


def test_a_shard_that_was_begun_is_no_shard_and_can_be_written_again(bucket, manifest):
    buffers = filled(ShardBuffers(manifest), 1.5)
    write_shard(bucket, 3, buffers, dropped_outliers=2)
    objects = {path: bucket.read(path) for path in bucket.find(LAYOUT.root)}
    bucket.remove(LAYOUT.commit(3))
    bucket.remove(f"{LAYOUT.array(3, 'document')}/c/0")
    bucket.write(f"{LAYOUT.array(3, 'position')}/c/0", b"half of it")
    assert committed_shards(bucket, "synthetic") == {0, 1}
    with pytest.raises(MissingObject):
        read_commit(bucket, "synthetic", 3)
    write_shard(bucket, 3, buffers, dropped_outliers=2)
    assert {path: bucket.read(path) for path in bucket.find(LAYOUT.root)} == objects


def test_a_commit_that_is_there_stays(bucket, manifest):
    before = bucket.read(LAYOUT.commit(1))
    write_shard(bucket, 1, filled(ShardBuffers(manifest), 1.5), dropped_outliers=9)
    assert bucket.read(LAYOUT.commit(1)) == before


def test_what_else_lies_beside_the_commits_is_no_shard(bucket, manifest):
    for name in (".DS_Store", "00004.json.bak", "notes.txt", "4.json"):
        bucket.write(f"{LAYOUT.commits}/{name}", b"")
    assert committed_shards(bucket, "synthetic") == {0, 1}


def test_nothing_is_committed_where_no_dataset_is(bucket):
    assert committed_shards(bucket, "synthetic") == set()
    with pytest.raises(MissingObject, match=LAYOUT.manifest):
        read_manifest(bucket, "synthetic")


def test_a_manifest_is_read_as_it_was_written(bucket, manifest):
    assert read_manifest(bucket, "synthetic") == manifest
    assert manifest.itemsize == 4
    assert manifest.hook("blocks.3.attn.hook_z").d == 12


def test_a_hook_that_was_not_harvested_is_answered_with_those_that_were(manifest):
    with pytest.raises(MissingObject) as caught:
        manifest.array("blocks.7.hook_resid_post")
    for name in ("synthetic", "blocks.7.hook_resid_post", *HOOKS):
        assert name in str(caught.value)


UNREADABLE = [
    ({"format": 1}, "format"),
    ({"shards": None}, "shards"),
    ({"rows_per_shard": "many"}, "rows_per_shard"),
    ({"more": 1}, "more"),
]


@pytest.mark.parametrize(("change", "named"), UNREADABLE)
def test_a_manifest_that_cannot_be_understood_is_answered_with_its_place_and_field(bucket, manifest, change, named):
    bucket.write(LAYOUT.manifest, checksummed_record(manifest.model_dump(mode="json") | change))
    with pytest.raises(CorruptObject) as caught:
        read_manifest(bucket, "synthetic")
    assert bucket.place(LAYOUT.manifest) in str(caught.value)
    assert f" {named}: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_record_that_is_no_json_object_is_corrupt(bucket, manifest, text):
    bucket.write(LAYOUT.commit(1), text)
    with pytest.raises(CorruptObject) as caught:
        read_commit(bucket, "synthetic", 1)
    assert bucket.place(LAYOUT.commit(1)) in str(caught.value)


@given(st.lists(st.floats(width=64), max_size=20))
@settings(deadline=None)
def test_a_vector_as_text_loses_no_bit(values):
    x = np.array(values, dtype=np.float64)
    assert vector(pack_vector(x)).tobytes() == x.tobytes()
    assert pack_vector(x).isascii()


def test_the_same_identity_is_accepted():
    refuse_other_identity("somewhere", {"a": 1, "b": [1.5, None]}, {"b": [1.5, None], "a": 1})


@pytest.mark.parametrize(
    ("stored", "wanted", "said"),
    [({"seed": 0, "z": 1}, {"seed": 7, "z": 2}, "seed = 0, and this run asks for 7"),
     ({"seed": 0}, {}, "seed = 0, and this run asks for None"),
     ({}, {"seed": 7}, "seed = None, and this run asks for 7"),
     ({"hooks": ["a", "b"]}, {"hooks": ["a"]}, r"hooks = \['a', 'b'\], and this run asks for \['a'\]")],
)  # fmt: skip
def test_another_identity_is_refused_by_its_first_difference(stored, wanted, said):
    with pytest.raises(Conflict, match=f"somewhere was made with {said}"):
        refuse_other_identity("somewhere", stored, wanted)


def filled(buffers: ShardBuffers, value: float) -> ShardBuffers:
    values = {hook.name: torch.full((ROWS, hook.d), value) for hook in buffers.manifest.hooks}
    fill(buffers, np.arange(ROWS), values, {name: np.ones(ROWS) for name in ROW_LABELS})
    return buffers


def test_a_dataset_of_another_format_says_what_to_do(bucket, manifest):
    bucket.write(LAYOUT.manifest, checksummed_record(manifest.model_dump(mode="json") | {"format": 1}))
    with pytest.raises(CorruptObject, match="has format 1, but this version reads format 3 only: harvest again under another dataset name"):
        read_manifest(bucket, "synthetic")


@pytest.mark.parametrize("block_bytes", [1, 100, 256, 10**9])
def test_blocks_cover_every_chunk_and_have_the_checksums_of_their_bytes(monkeypatch, tmp_path, block_bytes):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 700)
    monkeypatch.setattr(chunks, "BLOCK_BYTES", block_bytes)
    bucket = Bucket(str(tmp_path))
    made = make_dataset(bucket, "blocks", hooks={"blocks.0.hook_resid_post": 5}, shards=1, rows=60, dtype="bfloat16")
    spec, commit, folder = made.array("blocks.0.hook_resid_post"), read_commit(bucket, "blocks", 0), DatasetLayout("blocks")
    for index in range(spec.chunks):
        data = bucket.read(f"{folder.array(0, spec.name)}/{spec.chunk_key(index)}")[:-4]
        found = [google_crc32c.value(data[i : i + spec.block_bytes]) for i in range(0, len(data), spec.block_bytes)]
        assert commit.block_checksums(spec, index).tolist() == found and len(found) == spec.blocks
