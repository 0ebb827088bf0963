"""One snapshot of a sweep's state: few requests however many SAEs there are, and the same answers as asking for each."""

import io
from dataclasses import asdict
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from support import tiny_sweep
from support.faults import FaultyFileSystem

from scopemill.deploy.catalog.clean import orphans
from scopemill.deploy.catalog.status import read_status
from scopemill.deploy.orchestrator.early_stopping import EarlyStopping
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.record import digest_of, read_plan, write_plan
from scopemill.deploy.plan.state import SaeState, SweepState
from scopemill.deploy.plan.stopped import Stopped
from scopemill.deploy.plan.sweep_file import parse_sweep
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import Row

SAES = 500


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return tiny_sweep.write_text(tmp_path_factory.mktemp("text"), documents_wanted=3)


def plan_of(text: Path, bucket: str, sparsities: int, **train) -> SweepPlan:
    values = [round(1e-3 * (1 + i), 4) for i in range(sparsities)]
    return plan_sweep(parse_sweep(tiny_sweep.sweep(bucket, text, train={"sparsities": values} | train), "sweep.yaml"))


def history(step: int) -> bytes:
    row = Row(step, step, 0.5, 0.4, 50.0, 50.0, 0.4, 0, 1e-3, 1e-3, 1.0, 2.0, 0.0)
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([asdict(row)]), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def large(text) -> SweepPlan:
    """500 SAEs in every state there is, on a store that counts its requests."""
    plan = plan_of(text, "memory://large", SAES // 2, at_once=SAES, halving={"rungs": [0.3, 0.6], "keep": 0.5})
    rung = EarlyStopping(plan.passes[0], plan.read_state().passes[0], plan.saes).steps[0]
    stopped, write = [], plan.bucket.write
    for number, sae in enumerate(plan.saes):
        layout, kind = sae.layout, number % 5
        if kind:  # 0: not started
            write(layout.history, history(rung))
            for step in (4, 8, 16):
                place = layout.checkpoint(step)
                for path in (place.weights, place.optimizer, place.record):
                    write(path, b"1")
        if kind == 1:
            write(layout.weights, b"1")
            write(layout.config, b"{}")
        if kind == 2:
            write(layout.stopped, checksummed_record(asdict(Stopped(rung, 1.0, 1.0, ["another"]))))
            stopped.append(sae.name)
        if kind == 3:
            write(layout.checkpoint(24).weights, b"1")  # without its record it is no checkpoint
    rivals = {sae.rivals for sae in plan.saes}
    points = {"stopped": {name: ["another"] for name in stopped}, "points": {}}
    verdicts = [{"rivals": group, "step": rung} | points for group in rivals]
    write(SweepLayout("tiny").halving, checksummed_record({"verdicts": verdicts}))
    return plan


class Counted:
    """The requests of a plan's bucket for the length of a ``with``."""

    def __init__(self, plan: SweepPlan):
        self._bucket, self._fs = plan.bucket, plan.bucket._fs

    def __enter__(self) -> FaultyFileSystem:
        self._bucket._fs = FaultyFileSystem(self._fs, [])
        return self._bucket._fs

    def __exit__(self, *_) -> None:
        self._bucket._fs = self._fs


def test_reading_the_state_of_many_saes_lists_their_folder_once_and_reads_finished_ones_alone(large):
    with Counted(large) as requests:
        state = large.read_state()
    assert requests.count("find") == 1
    assert len(requests.log) <= 1 + 3 * len(large.passes) + SAES // 5
    assert len(state.saes) == SAES and len(state.unfinished) == SAES * 3 // 5


def test_before_training_starts_each_sae_costs_at_most_one_read_and_there_is_one_listing(large):
    """What the driver asks of the bucket until trainers start: the state, the cursors and what early stopping knows of ended SAEs."""
    part = large.passes[0]
    with Counted(large) as requests:
        state = large.read_state().passes[0]
        todo = part.named(state.unfinished)
        cursors = [state.saes[sae.name].step for sae in todo]
        EarlyStopping(part, state, todo)
    assert requests.count("find") == 1
    assert requests.count("cat_file") <= SAES
    assert len(requests.log) <= SAES
    assert set(cursors) == {0, 16}


def test_the_state_is_what_asking_for_each_sae_gives(large):
    state = large.read_state()
    for sae in large.saes[:10]:
        own = state.saes[sae.name]
        assert list(own.checkpoints) == checkpoint.steps_of(large.bucket, sae.layout)
        assert own.step == checkpoint.newest(large.bucket, sae.layout)
        for path, there in ((sae.layout.config, own.finished), (sae.layout.stopped, own.stopped), (sae.layout.history, own.history)):
            assert large.bucket.exists(path) == there


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", None])
def test_an_sae_is_finished_only_with_its_weights_and_a_cfg_that_is_json(text, tmp_path, broken):
    plan = plan_of(text, str(tmp_path / "bucket"), 2)
    layouts = [sae.layout for sae in plan.saes]
    for layout in layouts:
        plan.bucket.write(layout.weights, b"1")
        plan.bucket.write(layout.config, b"{}")
    assert plan.read_state().unfinished == []
    if broken is None:
        plan.bucket.remove(layouts[0].weights)
    else:
        plan.bucket.write(layouts[0].config, broken)
    assert plan.read_state().unfinished == [plan.saes[0].name]


def test_a_status_reads_each_sae_at_most_twice(large):
    with Counted(large) as requests:
        status = read_status(large.bucket, large.record)
    assert requests.count("find") == 1 and requests.count("cat_file") <= 2 * SAES
    assert sum(sae.finished for sae in status.saes) == sum(sae.stopped is not None for sae in status.saes) == SAES // 5
    assert {sae.step for sae in status.saes} == {0, 16}


def test_orphans_are_found_by_a_few_listings(large):
    with Counted(large) as requests:
        found = orphans(large.bucket, large.record)
    assert requests.count("find") <= 8 and requests.count("cat_file") == SAES // 5 + 1, (
        "cfg.json of the finished ones, and who is withdrawn"
    )
    older, begun = (large.saes[n].layout.checkpoint(step) for n, step in ((1, 4), (3, 24)))
    assert older.optimizer in found and begun.weights in found
    assert len(found) == SAES * 4 // 5 + SAES // 5


def test_a_folder_of_another_sae_is_not_taken_for_its_own(tmp_path, text):
    plan = plan_of(text, str(tmp_path / "bucket"), 2)
    one = plan.saes[0]
    plan.bucket.write(f"{one.layout.root}-other/cfg.json", b"{}")
    plan.bucket.write(f"{one.layout.root}/deeper/cfg.json", b"{}")
    assert plan.read_state().saes[one.name] == SaeState()


def test_a_record_gives_the_same_state_from_elsewhere_and_only_for_the_same_sweep_file(tmp_path, text):
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), text)
    config = parse_sweep(data, "sweep.yaml")
    plan = plan_sweep(config)
    assert read_plan(plan.bucket, config) is None
    write_plan(plan.bucket, plan.record)
    elsewhere = Bucket(plan.bucket.url)
    assert read_plan(elsewhere, config) == plan.record
    assert SweepState.read(elsewhere, plan.record) == plan.read_state()
    other = parse_sweep(data | {"train": data["train"] | {"sparsities": [1e-3]}}, "sweep.yaml")
    assert digest_of(other) != digest_of(config) and read_plan(elsewhere, other) is None
    plan.bucket.write(plan.record.layout.plan, b"damaged")
    assert read_plan(elsewhere, config) is None
