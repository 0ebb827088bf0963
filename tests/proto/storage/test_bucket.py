"""What every store promises, asked of a local folder and of a real S3 server alike, and what only one of them can promise."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scopemill.proto.errors import InputError, MissingObject, ScopemillError, StorageError
from scopemill.proto.storage.bucket import Bucket

ESCAPES = ["../outside", "a/../../outside", "a/..", "/outside", "//outside", "..", ".", ""]
# Writes versions of one object for ever: version n is n repeated, so a torn one is seen at once.
ENDLESS_WRITER = """
import sys
from scopemill.proto.storage.bucket import Bucket
bucket, size = Bucket(sys.argv[1]), int(sys.argv[2])
while True:
    for n in range(256):
        bucket.write("folder/object", bytes([n]) * size)
"""


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Bucket:
    """An empty bucket, in a folder or below a prefix of its own on the S3 server."""
    if request.param == "local":
        return Bucket(str(tmp_path / "bucket"))
    return Bucket(f"{request.getfixturevalue('s3_url')}/{tmp_path.name}")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def local(folder) -> Bucket:
    return Bucket(str(folder))


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_object_is_read_as_it_was_written(store):
    store.write("deep/down/object", b"some bytes")
    assert store.read("deep/down/object") == b"some bytes"


def test_an_object_may_be_empty(store):
    store.write("empty", b"")
    assert store.exists("empty")
    assert store.read("empty") == b""


def test_a_write_replaces_what_was_there(store):
    store.write("object", b"a long first version")
    store.write("object", b"second")
    assert store.read("object") == b"second"


def test_parts_of_any_kind_of_memory_are_joined(store):
    numbers = np.arange(6, dtype="<f4").reshape(2, 3)
    store.write("object", b"head", bytearray(b"-"), memoryview(numbers).cast("B"), memoryview(b"tail")[1:])
    assert store.read("object") == b"head-" + numbers.tobytes() + b"ail"


def test_an_object_too_large_for_one_upload_is_joined_from_its_parts(store):
    block = np.resize(np.arange(251, dtype=np.uint8), 51 * 2**20)
    store.write("large", memoryview(block), b"between", memoryview(block[::-1].copy()))
    data = np.frombuffer(store.read("large"), dtype=np.uint8)
    assert len(data) == 2 * len(block) + len(b"between")
    assert (data[: len(block)] == block).all()
    assert data[len(block) : -len(block)].tobytes() == b"between"
    assert (data[-len(block) :] == block[::-1]).all()


def test_an_object_is_read_into_memory_that_is_there(store):
    store.write("object", b"0123456789")
    buffer = bytearray(b"." * 16)
    assert bytes(store.read_into("object", memoryview(buffer))) == b"0123456789"


def test_an_object_that_just_fits_is_read_into_memory(store):
    store.write("object", b"0123456789")
    assert bytes(store.read_into("object", memoryview(bytearray(10)))) == b"0123456789"


def test_an_object_larger_than_the_memory_is_refused(store):
    store.write("folder/object", b"0123456789")
    with pytest.raises(StorageError, match=r"folder/object has 10 bytes, but at most 9 are expected"):
        store.read_into("folder/object", memoryview(bytearray(9)))


def test_a_local_file_is_read_into_the_very_memory_that_was_handed_in(local):
    local.write("object", b"0123456789")
    buffer = bytearray(b"." * 16)
    read = local.read_into("object", memoryview(buffer))
    assert buffer == b"0123456789......"
    buffer[0] = ord("x")
    assert bytes(read) == b"x123456789"


def test_a_missing_object_is_an_error_that_names_it(store):
    for read in (lambda: store.read("a/b"), lambda: store.read_into("a/b", memoryview(bytearray(8)))):
        with pytest.raises(MissingObject) as caught:
            read()
        assert store.place("a/b") in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_place_of_an_object_is_below_the_url_that_was_given(store):
    assert store.place("a/b") == f"{store.url}/a/b"


def test_a_folder_is_no_object(store):
    store.write("folder/object", b"")
    assert not store.exists("folder")
    with pytest.raises(StorageError):
        store.read("folder")


def test_only_what_was_written_exists(store):
    assert not store.exists("a/b")
    store.write("a/b", b"1")
    assert store.exists("a/b")
    assert not store.exists("a/bc")
    assert not store.exists("a/b/c")


def test_a_created_object_keeps_its_first_bytes(store):
    assert store.create("record", b"first")
    assert not store.create("record", b"second")
    assert store.read("record") == b"first"


def test_a_written_object_cannot_be_created_again(store):
    store.write("record", b"written")
    assert not store.create("record", b"created")
    assert store.read("record") == b"written"


def test_a_removed_object_can_be_created_again(store):
    assert store.create("record", b"first")
    store.remove("record")
    assert store.create("record", b"second")
    assert store.read("record") == b"second"


def test_of_many_who_create_at_once_exactly_one_wins_and_its_bytes_stay(store):
    writers, rounds = 12, 5
    start = threading.Barrier(writers)

    def create(path: str, writer: int) -> bool:
        start.wait()
        return store.create(path, str(writer).encode() * 1000)

    with ThreadPoolExecutor(writers) as pool:
        for number in range(rounds):
            path = f"commits/{number:05d}.json"
            won = list(pool.map(create, [path] * writers, range(writers)))
            assert won.count(True) == 1
            assert store.read(path) == str(won.index(True)).encode() * 1000
    assert store.find("commits") == [f"commits/{number:05d}.json" for number in range(rounds)]


def test_names_are_those_directly_below_a_folder_in_order(store):
    for path in ("folder/b", "folder/a/deep", "folder/c.json", "folders/other", "other"):
        store.write(path, b"1")
    assert store.names("folder") == ["a", "b", "c.json"]
    assert store.names("folder/a") == ["deep"]


def test_find_gives_every_object_below_a_folder_as_paths_that_can_be_read(store):
    for path in ("folder/b", "folder/a/deep/er", "folder/a/z", "folders/other", "folder2", "other"):
        store.write(path, path.encode())
    found = store.find("folder")
    assert found == ["folder/a/deep/er", "folder/a/z", "folder/b"]
    assert [store.read(path) for path in found] == [path.encode() for path in found]


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(tmp_path, monkeypatch):
    """fsspec's find leaves such a folder out: its SAEs would not be there, and its orphans not be found."""
    bucket = Bucket(str(tmp_path))
    for path in ("a/1", "a/b/2", "c"):
        bucket.write(path, b"1")
    assert bucket.find("a") == ["a/1", "a/b/2"] and set(bucket.versions("a")) == {"a/1", "a/b/2"} and bucket.find("c") == ["c"]
    listing = LocalFileSystem.ls

    def refused(self, path, **options):
        if path.endswith("a/b"):
            raise PermissionError(13, "Permission denied", path)
        return listing(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", refused)
    for look in (bucket.find, bucket.versions):
        with pytest.raises(StorageError, match=f"cannot list {tmp_path}/a: Permission denied"):
            look("a")


def test_a_folder_that_is_not_there_holds_nothing(store):
    assert store.names("nothing/here") == []
    assert store.find("nothing/here") == []


def test_what_other_processes_write_and_remove_is_seen_at_once(store):
    fs, root = fsspec.core.url_to_fs(store.url, skip_instance_cache=True)  # a client that knows nothing of ours
    fs.makedirs(f"{root}/folder", exist_ok=True)
    for number in range(3):
        assert len(store.names("folder")) == len(store.find("folder")) == number
        assert not store.exists(f"folder/{number}")
        fs.pipe_file(f"{root}/folder/{number}", b"1")
        assert store.exists(f"folder/{number}")
    fs.rm_file(f"{root}/folder/1")
    assert store.names("folder") == ["0", "2"]
    assert not store.exists("folder/1")


def test_a_removed_object_is_gone_and_its_neighbours_stay(store):
    store.write("folder/a", b"1")
    store.write("folder/b", b"2")
    store.remove("folder/a")
    assert not store.exists("folder/a")
    assert store.find("folder") == ["folder/b"]


def test_a_removed_folder_is_gone_with_all_below_it_and_its_neighbours_stay(store):
    for path in ("folder/a", "folder/deep/er/b", "folder2/c"):
        store.write(path, b"1")
    store.remove_tree("folder")
    assert store.find("folder") == []
    assert store.find("folder2") == ["folder2/c"]


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_a_folder_named_like_a_pattern_is_no_pattern(request, tmp_path, kind):
    """fsspec's own rm of `run[1]/shards` deletes `run1/shards`, and that of `run*/shards` all of them."""
    base = {"local": str(tmp_path), "memory": f"memory://{tmp_path.name}"}.get(
        kind
    ) or f"{request.getfixturevalue('s3_url')}/{tmp_path.name}"
    names = ["run1", "run[1]", "run2", "run*", "runs"]
    buckets = {name: Bucket(f"{base}/{name}") for name in names}
    for name, bucket in buckets.items():
        for path in ("shards/a", "shards/b[0]/c", "kept"):
            bucket.write(path, name.encode())
    for gone in ("run[1]", "run*"):
        buckets[gone].remove_tree("shards")
        names.remove(gone)
        assert buckets[gone].find("shards") == [] and buckets[gone].read("kept") == gone.encode()
    for name in names:
        assert buckets[name].find("shards") == ["shards/a", "shards/b[0]/c"]
        assert buckets[name].read("shards/b[0]/c") == name.encode() and buckets[name].names("shards") == ["a", "b[0]"]


def test_what_is_not_there_can_be_removed(store):
    store.remove("never/was")
    store.remove_tree("never")


def test_asking_whether_a_bucket_can_be_written_leaves_nothing_in_it(store):
    store.check_writable()
    store.write("object", b"1")
    fs, root = fsspec.core.url_to_fs(store.url)
    fs.invalidate_cache()
    assert [found.removeprefix(root) for found in fs.find(root)] == ["/object"]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_that_leaves_the_bucket_is_refused_by_every_verb(store, path):
    verbs = [
        lambda: store.read(path),
        lambda: store.read_into(path, memoryview(bytearray(8))),
        lambda: store.write(path, b"1"),
        lambda: store.create(path, b"1"),
        lambda: store.exists(path),
        lambda: store.names(path),
        lambda: store.find(path),
        lambda: store.remove(path),
        lambda: store.remove_tree(path),
    ]
    for verb in verbs:
        with pytest.raises(StorageError, match="not a path inside the bucket"):
            verb()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "..a", "a..", " "]), max_size=6).map("/".join))
def test_a_write_to_any_path_at_all_stays_inside_the_folder(tmp_path, path):
    inside = tmp_path / "outer" / "bucket"
    try:
        Bucket(str(inside)).write(path, b"1")
    except StorageError:
        return
    assert (inside / path).read_bytes() == b"1"
    assert (inside / path).resolve().is_relative_to(inside.resolve())
    assert [p for p in tmp_path.iterdir() if p.name != "outer"] + [p for p in (tmp_path / "outer").iterdir() if p.name != "bucket"] == []


def test_a_bucket_survives_pickling(store):
    store.write("object", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.url == store.url
    assert copy.read("object") == b"1"


def test_readers_see_whole_versions_while_the_object_is_replaced(store):
    size, versions = 2**18, 12
    store.write("object", bytes(size))
    done = threading.Event()

    def read_all_the_time() -> set[int]:
        seen = set()
        while not done.is_set():
            data = store.read("object")
            assert len(data) == size
            assert data.count(data[:1]) == size
            seen.add(data[0])
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read_all_the_time) for _ in range(2)]
        for version in range(1, versions):
            store.write("object", bytes([version]) * size)
        done.set()
        assert len(set().union(*(reader.result() for reader in readers))) > 1


def test_a_writer_killed_at_any_moment_leaves_a_whole_version(store):
    size = 2**20
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, store.url, str(size)])
    try:
        wait_until(lambda: store.exists("folder/object"))
        time.sleep(0.21)  # somewhere within one of the next versions
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    data = store.read("folder/object")
    assert len(data) == size
    assert data.count(data[:1]) == size
    assert store.names("folder") == ["object"]
    assert store.find("folder") == ["folder/object"]


def test_an_upload_in_parts_that_is_killed_was_never_visible(s3_url):
    bucket, client = Bucket(f"{s3_url}/killed"), s3fs.S3FileSystem(skip_instance_cache=True)
    uploads = lambda: client.list_multipart_uploads(s3_url.removeprefix("s3://"))  # noqa: E731
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, bucket.url, str(101 * 2**20)])
    try:
        wait_until(uploads)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert not bucket.exists("folder/object")
    assert bucket.names("folder") == []
    client.clear_multipart_uploads(s3_url.removeprefix("s3://"))
    assert not uploads()


def test_a_write_that_fails_halfway_leaves_the_old_object_and_nothing_else(local, folder):
    local.write("folder/object", b"old")
    with pytest.raises(StorageError, match="cannot write .*folder/object"):
        local.write("folder/object", b"new", 7)
    with pytest.raises(StorageError):
        local.create("folder/fresh", 7)
    assert local.read("folder/object") == b"old"
    assert files_below(folder) == ["folder/object"]


def test_no_temporary_files_stay_behind(local, folder):
    local.write("a/object", b"1")
    local.write("a/object", b"2")
    local.create("a/record", b"1")
    local.create("a/record", b"2")
    local.read("a/object")
    local.remove("gone")
    local.check_writable()
    assert files_below(folder) == ["a/object", "a/record"]


def test_what_a_killed_writer_left_is_not_listed(local, folder):
    local.write("a/object", b"1")
    (folder / "a" / f".tmp-{'0' * 32}").write_bytes(b"half")
    assert local.names("a") == ["object"]
    assert local.find("a") == ["a/object"]


def test_a_file_system_without_hard_links_is_found_before_anything_is_committed(local, folder, monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    local.check_writable()  # enough for copies, which are only written
    for refused in (lambda: local.check_writable(commits=True), lambda: local.create("a", b"1")):
        with pytest.raises(StorageError, match="commits need hard links, which its file system has not"):
            refused()
    assert files_below(folder) == []


def test_a_failed_sync_is_not_tried_again(local, monkeypatch):
    """After an EIO the system takes the lost pages for written: a second fsync would succeed."""
    calls = []

    def fsync(file):
        calls.append(file)
        raise OSError(errno.EIO, "Input/output error")

    local.write("chunk", b"1", durable=False)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="cannot sync .*chunk"):
        local.sync(["chunk"])
    assert len(calls) == 1


@pytest.mark.parametrize("verb", [Bucket.check_writable, lambda b: b.write("a/b", b"1"), lambda b: b.create("a/b", b"1")])
def test_a_folder_that_cannot_be_written_is_one_sentence_that_names_it(tmp_path, verb):
    (tmp_path / "file").write_bytes(b"")  # root may write everywhere else
    bucket = Bucket(str(tmp_path / "file" / "bucket"))
    with pytest.raises(StorageError) as caught:
        verb(bucket)
    assert bucket.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_s3_bucket_that_does_not_exist_is_one_sentence_that_names_it(s3_url):
    bucket = Bucket("s3://no-such-bucket/folder")
    with pytest.raises(StorageError) as caught:
        bucket.check_writable()
    assert "s3://no-such-bucket/folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingObject):
        bucket.read("object")
    assert bucket.names("folder") == []


def test_a_wrong_s3_key_is_one_sentence_that_names_the_object(s3_url, monkeypatch):
    Bucket(s3_url).write("guarded", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a guess")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        for verb in (Bucket.check_writable, lambda b: b.read("guarded"), lambda b: b.create("guarded", b"2")):
            with pytest.raises(StorageError) as caught:
                verb(Bucket(s3_url))
            assert s3_url in str(caught.value)
            assert not isinstance(caught.value, MissingObject)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_s3_is_where_the_environment_says(s3_url, tmp_path):
    Bucket(f"{s3_url}/where").write("object", b"1")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    explicit = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True, use_listings_cache=False)
    assert endpoint.startswith("http://127.0.0.1:")
    assert explicit.cat_file(f"{s3_url}/where/object") == b"1"


@pytest.mark.parametrize("url", ["nosuchscheme://bucket", "s4://bucket/folder"])
def test_a_url_of_no_known_kind_is_refused_with_a_sentence(url):
    with pytest.raises(InputError) as caught:
        Bucket(url)
    assert url in str(caught.value)
    assert isinstance(caught.value, ScopemillError)


def wait_until(holds, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.03)
