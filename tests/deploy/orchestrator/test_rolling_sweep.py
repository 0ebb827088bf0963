"""Rolling mode on Ray: the same bits as with all shards kept, in bounded room on disk, also after interruptions."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import tiny_sweep
from support.tiny_sweep import planned, quiet

from scopemill.deploy.orchestrator import rolling, training
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.proto.dataset import committed_shards
from scopemill.proto.errors import Conflict, InputError

AHEAD, SHARDS = 4, 12


@pytest.fixture(autouse=True)
def looks_often(monkeypatch) -> None:
    """Look for new checkpoints more often: a shard takes a tenth of a second here, and minutes in a real sweep."""
    monkeypatch.setattr(rolling, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(training, "POLL_SECONDS", 0.1)


def plan_of(folder: Path, text: Path, rolling: int | None, harvest: dict | None = None, **train) -> SweepPlan:
    folder.mkdir(exist_ok=True)
    data = tiny_sweep.sweep(
        str(folder / "bucket"),
        text,
        harvest={"layers": [1], "tokens": 512 * SHARDS, "rows_per_shard": 512, "cpus": 0.5, "rolling": rolling} | (harvest or {}),
        train={"batch_size": 128, "tokens": 128 * 72, "checkpoint_every": 8} | train,  # an epoch and a half
    )
    return planned(folder, data)


@contextmanager
def watched(plan: SweepPlan) -> Iterator[list[int]]:
    """Count the shards on disk, whole or incomplete, again and again."""
    counts, stop = [0], threading.Event()
    folder = Path(plan.bucket.url) / "activations"

    def look() -> None:
        while not stop.wait(0.02):
            counts.append(len(list(folder.glob("*/shards/*.zarr"))))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()


def weights(plan: SweepPlan) -> dict[str, bytes]:
    return {sae.name: plan.bucket.read(sae.layout.checkpoint(sae.config.steps).weights) for sae in plan.saes}


@pytest.fixture(scope="module")
def kept(tmp_path_factory, text, ray_cluster) -> SweepPlan:
    plan = plan_of(tmp_path_factory.mktemp("kept"), text, None)
    driver = SweepDriver(plan, quiet())
    driver.harvest()
    driver.train()
    return plan


def test_rolling_ends_with_the_same_bits_in_bounded_room_and_leaves_no_shard(tmp_path, text, harvests, kept):
    plan = plan_of(tmp_path, text, AHEAD)
    harvests(plan)
    driver = SweepDriver(plan, quiet())
    assert not committed_shards(plan.bucket, "tiny")
    with watched(plan) as counts:
        driver.train()
    assert weights(plan) == weights(kept)
    assert 2 <= max(counts) <= AHEAD < SHARDS
    assert not plan.bucket.find(f"{plan.passes[0].harvest.layout.root}/shards") and not committed_shards(plan.bucket, "tiny")
    assert not driver.has_work(("harvest", "train"))
    plan.bucket.remove_tree(plan.saes[1].layout.root)  # this SAE starts anew: its shards were deleted long ago, and are made again
    with watched(plan) as counts:
        driver.train()
    assert weights(plan) == weights(kept) and max(counts) <= AHEAD


def test_an_interrupted_rolling_sweep_resumes_and_ends_with_the_same_bits(tmp_path, text, harvests, kept, monkeypatch):
    plan = plan_of(tmp_path, text, AHEAD)
    harvests(plan)
    driver, struck = SweepDriver(plan, quiet()), threading.Event()
    watch = training.Training._watch

    def interrupted(self) -> None:
        watch(self)
        if plan.bucket.exists(plan.saes[0].layout.checkpoint(16).record) and not struck.is_set():
            struck.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver.train()
    assert not all(plan.bucket.exists(sae.layout.config) for sae in plan.saes)
    plan.bucket.remove_tree(plan.saes[1].layout.root)  # this SAE starts anew, and the other resumes at step 16
    SweepDriver(plan, quiet()).train()
    assert weights(plan) == weights(kept)


def test_rolling_in_two_passes_ends_with_the_same_bits_in_the_room_of_one(tmp_path, text, kept):
    row = 192 * 2 + 16  # bytes, of one hook in bfloat16 and of the labels
    plan = plan_of(tmp_path, text, AHEAD, harvest={"layers": [0, 1], "memory_gib": 2 * 512 * (row + 1) / 2**30}, sparsities=[1e-3])
    assert [part.harvest.hooks[0].layer for part in plan.passes] == [0, 1]
    driver = SweepDriver(plan, quiet())
    driver.harvest()
    with watched(plan) as counts:
        driver.train()
    first, second = weights(plan).items()
    assert second in weights(kept).items() and first[1] != second[1], "the second pass is the layer that was kept"
    assert 2 <= max(counts) <= AHEAD
    assert not [path for path in plan.bucket.find("activations") if "/shards/" in path or "/commits/" in path]
    assert not driver.has_work(("harvest", "train"))


def test_a_dataset_that_was_harvested_to_be_kept_is_not_deleted(kept, text):
    folder = Path(kept.bucket.url).parent
    with pytest.raises(Conflict, match="'tiny' was harvested to be kept, and rolling mode deletes"):
        plan_of(folder, text, AHEAD)


def test_settings_that_would_stall_are_refused(tmp_path, text, harvests):
    with pytest.raises(InputError, match=r"harvest.rolling: between two checkpoints \(24 steps\) up to 8 shards are needed, and 4 may"):
        plan_of(tmp_path / "a", text, AHEAD, checkpoint_every=24)
    with pytest.raises(InputError, match="all 2 SAEs have to train at once.*train.at_once is 1"):
        plan_of(tmp_path / "b", text, AHEAD, at_once=1)
    grouped = plan_of(tmp_path / "b", text, AHEAD, at_once=1, group=2)
    assert grouped.passes[0].trainers(grouped.saes) == 1
    plan = plan_of(tmp_path / "c", text, AHEAD, cpus=50)
    harvests(plan)
    with pytest.raises(InputError, match=r"harvest.rolling: 1 harvesters and 2 trainers run at the same time and need 100.5 CPUs"):
        SweepDriver(plan, quiet()).train()
