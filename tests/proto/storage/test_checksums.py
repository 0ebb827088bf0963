"""Objects that carry their checksum: any single damage is found, and both kinds stay what others read."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from scopemill.proto.errors import CorruptObject
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, checksummed_tensors, read_record, read_tensors

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.c": np.zeros((0, 3), np.int64),
    "flag": np.array(True),
    "odd": np.arange(7, dtype=np.uint8),
}
RECORD = {"step": 500, "scale": 0.1 + 0.2, "not a number": float("nan"), "nested": {"z": [1, 2.5, None], "a": "é\n"}}
OBJECT = b"".join(map(bytes, checksummed_tensors(safetensors.numpy.save(TENSORS))))


@pytest.fixture
def bucket(tmp_path) -> Bucket:
    return Bucket(str(tmp_path))


def test_sealed_tensors_are_safetensors_for_everybody(bucket, tmp_path):
    bucket.write("x", OBJECT)
    assert read_tensors(bucket, "x") == OBJECT
    with safetensors.safe_open(tmp_path / "x", "numpy") as file:
        assert set(file.metadata()) == {"crc32c"}
        for name, tensor in TENSORS.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype and np.array_equal(read, tensor)
    assert (8 + int.from_bytes(OBJECT[:8], "little")) % 8 == 0


def read(data: bytes) -> bytes:
    class There(Bucket):
        def read(self, path: str) -> bytes:
            return data

    return read_tensors(There("memory://there"), "x")


@given(bit=st.integers(0, len(OBJECT) * 8 - 1))
def test_every_flipped_bit_is_found_unless_the_object_says_the_same(bit):
    damaged = bytearray(OBJECT)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        read(bytes(damaged))
    except CorruptObject:
        return
    # White space of the header may change to other white space.
    assert json.loads(bytes(damaged[8 : 8 + int.from_bytes(damaged[:8], "little")])) == json.loads(
        OBJECT[8 : 8 + int.from_bytes(OBJECT[:8], "little")]
    )


@given(end=st.integers(0, len(OBJECT) - 1))
def test_a_short_object_is_found(end):
    with pytest.raises(CorruptObject, match="there/x does not match"):
        read(OBJECT[:end])


def test_tensors_without_a_checksum_are_not_taken():
    for metadata in (None, {"format": "pt"}):
        with pytest.raises(CorruptObject):
            read(safetensors.numpy.save(TENSORS, metadata=metadata))


def test_a_record_comes_back_and_is_plain_json(bucket):
    bucket.write("r", checksummed_record(RECORD))
    assert repr(read_record(bucket, "r")) == repr(RECORD)
    assert json.loads(bucket.read("r"))["step"] == 500


def test_a_record_may_be_written_in_another_way_but_not_say_another_thing(bucket):
    fields = json.loads(checksummed_record(RECORD))
    bucket.write("r", json.dumps(dict(reversed(fields.items())), indent=4).encode())
    assert read_record(bucket, "r")["scale"] == RECORD["scale"]
    for change in ({"step": 501}, {"scale": 0.3}, {"more": 1}, {"nested": {}}):
        bucket.write("r", json.dumps(fields | change).encode())
        with pytest.raises(CorruptObject, match="/r does not match"):
            read_record(bucket, "r")


def test_damage_on_the_way_is_read_once_more(bucket, monkeypatch):
    bucket.write("x", OBJECT)
    answers = [OBJECT[:-1] + b"\xff", OBJECT]
    monkeypatch.setattr(Bucket, "read", lambda self, path: answers.pop(0))
    assert read_tensors(bucket, "x") == OBJECT
