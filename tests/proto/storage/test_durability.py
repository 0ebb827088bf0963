"""What is committed survives a power cut: on a model of a device that forgets, and on a real file system that is cut off."""

import fcntl
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.power_cut import Recording, after_cut
from support.sae_reference import quick
from support.synthetic import make_dataset

from scopemill.proto.dataset import committed_shards, read_manifest
from scopemill.proto.errors import StorageError
from scopemill.proto.finished import is_finished, read_weights
from scopemill.proto.layout import SaeLayout
from scopemill.proto.shards import take_back, verify_shard
from scopemill.proto.storage import local_files
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Port, Shape, Wiring
from scopemill.trainer.formats import FinishedSae, write_saelens
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

HOOK, D = "blocks.0.hook_resid_post", 6
SAE = SaeLayout(f"saes/m/{HOOK}/width_10/jumprelu/0")
WIRING = Wiring((Port(HOOK, D, 1.0),))
STEPS = (10, 20, 30)
EXT4_SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2  # ioctl of linux/ext4: nothing more reaches the device


def work(bucket: Bucket, done: Callable[[object], None]) -> None:
    """Write all that a sweep commits, and tell of each commit."""
    manifest = make_dataset(bucket, hooks={HOOK: D}, shards=2, rows=64)
    done("shards")
    take_back(bucket, manifest.dataset, 1)
    done("taken back")
    make_dataset(bucket, hooks={HOOK: D}, shards=2, rows=64)
    done("shards")
    config = quick(width=10, sparsity=0.5)
    loop = Loop(initial_sae(config, Shape.square(D), torch.zeros(D)), config, History())
    for step in STEPS:
        loop.step_number = step
        loop.history.save(bucket, SAE.history)
        checkpoint.save(bucket, SAE, WIRING, loop)
        done(step)
    finished = FinishedSae(fold(loop.sae, [1.0], [1.0]), (HOOK,), (HOOK,), "m")
    write_saelens(bucket, SAE, finished, {"sweep": "test"})
    done("finished")


def check(bucket: Bucket, done: list[object]) -> None:
    """What is committed is whole, and what was done is there."""
    shards = committed_shards(bucket, "synthetic") if bucket.exists("activations/synthetic/dataset.json") else set()
    for shard in shards:
        verify_shard(bucket, read_manifest(bucket, "synthetic"), shard)
    if done and done[-1] != "taken back":
        assert shards == {0, 1}
    for step in checkpoint.steps_of(bucket, SAE)[-2:]:
        checkpoint.verify(bucket, SAE, step)
    saved = [step for step in done if step in STEPS]
    assert checkpoint.newest_whole(bucket, SAE) >= max(saved, default=0)
    assert len(checkpoint.steps_of(bucket, SAE)) >= len(saved)
    if bucket.exists(SAE.config):
        assert is_finished(bucket, SAE) and read_weights(bucket, SAE)
    assert is_finished(bucket, SAE) or "finished" not in done


@pytest.fixture(scope="module", params=["synced", "not synced"])
def recorded(request, tmp_path_factory) -> tuple[Recording, Path]:
    root, os_ = tmp_path_factory.mktemp("device") / "bucket", Recording(syncs=request.param == "synced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_files, "os", os_)
        work(Bucket(str(root)), os_.done)
    return os_, root


def cut_everywhere(recording: Recording, root: Path, scratch: Path) -> None:
    @settings(max_examples=150, deadline=None, report_multiple_bugs=False)
    @given(n=st.integers(0, len(recording.log)), seed=st.integers(0, 2**32))
    def cut(n: int, seed: int) -> None:
        files, done = after_cut(recording.log, n, root, random.Random(seed))
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for path, data in files.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(data)
        check(Bucket(str(scratch)), done)

    cut()


def test_a_cut_at_any_moment_leaves_all_that_was_committed_whole(recorded, tmp_path):
    recording, root = recorded
    if recording.syncs:
        cut_everywhere(recording, root, tmp_path / "after")
    else:  # the model does lose what is not synced
        with pytest.raises((AssertionError, StorageError)):
            cut_everywhere(recording, root, tmp_path / "after")


def test_a_shard_is_synced_once_before_its_record(recorded):
    recording, _ = recorded
    if not recording.syncs:
        pytest.skip("of the run that syncs")
    links = [i for i, operation in enumerate(recording.log) if operation[0] == "link" and "/commits/" in operation[2]]
    chunks = [i for i, operation in enumerate(recording.log) if operation[0] == "rename" and "/shards/00000.zarr/" in operation[2]]
    syncs = [i for i, operation in enumerate(recording.log[: links[0]]) if operation[0] == "sync"]
    own = [i for i in chunks if i < links[0]]
    assert not [i for i in syncs if own[0] < i < own[-1]], "chunks are written one after another"
    assert len([i for i in syncs if i > own[-1]]) >= len(own)


@contextmanager
def device(folder: Path) -> Iterator[Callable[[], Path]]:
    """Mount a new ext4 file system; calling the result cuts it off without a flush and mounts it again."""
    image, mounted = folder / "image", folder / "mounted"
    mounted.mkdir()
    subprocess.run(["truncate", "-s", "64M", image], check=True)

    def mount() -> bool:
        return subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True).returncode == 0

    made = shutil.which("mkfs.ext4") and subprocess.run(["mkfs.ext4", "-q", image], capture_output=True).returncode == 0
    if not made or not mount():
        pytest.skip("a real file system cannot be cut off here: this machine lets nobody mount an ext4 image on a loop device")

    def cut() -> Path:
        descriptor = os.open(mounted, os.O_RDONLY)
        fcntl.ioctl(descriptor, EXT4_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        os.close(descriptor)
        subprocess.run(["umount", mounted], check=True)
        assert mount()
        return mounted

    try:
        yield cut
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize("done_before", ["shards", 10, 20, 30, "finished"])
def test_a_real_file_system_that_is_cut_off_keeps_what_was_committed(tmp_path, done_before):
    class Cut(Exception):
        pass

    with device(tmp_path) as cut:
        done = []

        def note(what: object) -> None:
            done.append(what)
            if what == done_before:
                raise Cut

        with pytest.raises(Cut):
            work(Bucket(str(tmp_path / "mounted" / "bucket")), note)
        check(Bucket(str(cut() / "bucket")), done)


def test_a_real_file_system_loses_what_was_not_synced(tmp_path):
    with device(tmp_path) as cut:
        bucket = Bucket(str(tmp_path / "mounted" / "bucket"))
        bucket.write("kept", b"1" * 5000)
        bucket.write("lost", b"1" * 5000, durable=False)
        after = Bucket(str(cut() / "bucket"))
        assert after.read("kept") == b"1" * 5000
        assert not after.exists("lost") or after.read("lost") != b"1" * 5000
        after.write("later", b"1" * 5000, durable=False)
        after.sync(["later"])
        assert Bucket(str(cut() / "bucket")).read("later") == b"1" * 5000
