"""Monitors: rows are told while training runs, a resumed run repeats none, and a broken monitor stops nobody."""

import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.assignments import STEPS, assign

from scopemill.proto.errors import InputError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training.history import History, Row
from scopemill.trainer.training.monitors import PART_ROWS, Jsonl, Monitor, Monitors, TensorBoard, Wandb, read_rows, sweep_monitors
from scopemill.trainer.worker.group_trainer import GroupTrainer


def row(step: int, fvu: float = 0.5) -> Row:
    return Row(step, step * 256, 1.0, 0.9, 12.0, 12.5, fvu, 3, 1e-3, 1e-2, 1.0, 40.0, 0.1)


def eventually(met) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("store", ["{tmp_path}", "{s3_url}/monitors"])
def test_rows_are_on_the_bucket_before_training_ends_and_all_of_them_after(tmp_path, s3_url, store):
    place, now = store.format(tmp_path=tmp_path, s3_url=s3_url), [0.0]
    monitor = Jsonl(place, every=5, clock=lambda: now[0])
    monitor.begin([])
    assert read_rows(place) == []
    rows = [row(step) for step in range(1, 2 * PART_ROWS + 10)]
    monitor.on_row(rows[0])
    eventually(lambda: read_rows(place) == rows[:1])
    for each in rows[1:-1]:
        monitor.on_row(each)
    assert read_rows(place) == rows[:1]  # five seconds are not over
    now[0] = 5.0
    monitor.on_row(rows[-1])
    eventually(lambda: read_rows(place) == rows)
    monitor.on_row(row(10_000, math.nan))
    monitor.on_end()
    assert [r.step for r in read_rows(place)] == [r.step for r in rows] + [10_000]
    lines = Bucket(place).read("live/00002.jsonl").decode().splitlines()
    assert len(lines) == 10 and json.loads(lines[-1])["fvu"] is None and math.isnan(read_rows(place)[-1].fvu)


@pytest.mark.parametrize("kept", [0, 7, PART_ROWS, PART_ROWS + 1])
def test_a_resumed_run_replaces_the_rows_of_steps_that_are_repeated(tmp_path, kept):
    rows = [row(step) for step in range(1, 2 * PART_ROWS + 10)]
    first = Jsonl(str(tmp_path))
    first.begin([])
    for each in rows:
        first.on_row(each)
    first.on_end()
    again = Jsonl(str(tmp_path))
    again.begin(rows[:kept])
    assert read_rows(str(tmp_path)) == rows[:kept]
    again.on_row(row(9999))
    again.on_end()
    assert read_rows(str(tmp_path)) == [*rows[:kept], row(9999)]


def test_rows_of_a_failed_write_come_with_the_next(tmp_path):
    monitor = Jsonl(str(tmp_path), every=0)
    monitor.begin([])
    (tmp_path / "live").write_text("a file where a folder belongs")
    told = Monitors([monitor])
    told.on_row(row(1))
    time.sleep(0.2)
    (tmp_path / "live").unlink(missing_ok=True)
    told.on_row(row(2))
    told.on_end()
    assert read_rows(str(tmp_path)) == [row(1), row(2)]


def test_a_broken_monitor_is_logged_once_and_the_others_hear_everything(caplog):
    class Broken(Monitor):
        def on_row(self, row: Row) -> None:
            raise OSError("no more quota")

    class Heard(Monitor):
        def __init__(self):
            self.steps: list[int] = []

        def on_row(self, row: Row) -> None:
            self.steps.append(row.step)

    heard = Heard()
    with caplog.at_level(logging.WARNING):
        monitors = Monitors([Broken(), heard])
        for step in (1, 2, 3):
            monitors.on_row(row(step))
        monitors.on_end()
    assert heard.steps == [1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == ["Monitor Broken failed, training continues: no more quota"]


def test_tensorboard_gets_a_scalar_for_each_column(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    monitor = TensorBoard(str(tmp_path))
    monitor.begin([])
    for step in (10, 20):
        monitor.on_row(row(step, fvu=step / 100))
    monitor.on_end()
    told = {}
    (file,) = tmp_path.glob("events*")
    data = file.read_bytes()
    while data:  # a TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        told |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + size :]
    assert told["fvu", 10] == pytest.approx(0.1) and told["fvu", 20] == pytest.approx(0.2)
    assert {tag for tag, _ in told} == set(vars(row(1))) - {"step"}


def leveldb_records(data: bytes) -> list[bytes]:
    """The records of a file in LevelDB's log format, after wandb's seven bytes of its own."""
    found, at = [], 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece, at = data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 2):  # a whole record, or the first piece of one
            found.append(piece)
        else:
            found[-1] += piece
    return found


def test_wandb_gets_every_row_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monitor = Wandb(project="p", name="n", id="abc", config={"width": 8})
    monitor.begin([])
    for step in (10, 20):
        monitor.on_row(row(step, fvu=step / 100))
    monitor.on_end()
    (file,) = tmp_path.rglob("run-abc.wandb")

    def told() -> list[tuple[int, float]]:
        records = [Record.FromString(data) for data in leveldb_records(file.read_bytes())]
        history = [record.history for record in records if record.WhichOneof("record_type") == "history"]
        fvu = [json.loads(item.value_json) for one in history for item in one.item if "fvu" in (item.key, *item.nested_key)]
        return list(zip([one.step.num for one in history], fvu, strict=True))

    deadline = time.monotonic() + 60  # wandb's own process writes the file, and may be late where the machine is busy
    while len(told()) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert told() == [(10, 0.1), (20, 0.2)] and wandb.run is None


def test_a_monitor_whose_package_is_missing_or_whose_place_is_remote_says_so(bucket, monkeypatch):
    with pytest.raises(InputError, match="bucket memory://b is remote; use jsonl or wandb"):
        sweep_monitors(["tensorboard"], Bucket("memory://b"), SaeLayout("saes/x"), {})
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match="run `pip install wandb`"):
        sweep_monitors(["wandb"], bucket, SaeLayout("saes/x"), {})


def test_a_trainer_reports_its_history_as_it_trains(bucket, server):
    one = replace(assign("live"), monitors=("jsonl", "tensorboard"))
    assert GroupTrainer(bucket, [one]).run(server.address) == {one.name: STEPS}
    rows = History.load(bucket, SaeLayout(one.root).history, STEPS).rows
    assert read_rows(bucket.place(one.root)) == rows != []
    assert list(Path(bucket.url, one.root, "tensorboard").glob("events*"))
    before = {path: path.stat().st_mtime_ns for path in Path(bucket.url).rglob("*")}
    assert GroupTrainer(bucket, [one]).run(server.address) == {one.name: STEPS}
    assert {path: path.stat().st_mtime_ns for path in Path(bucket.url).rglob("*")} == before
