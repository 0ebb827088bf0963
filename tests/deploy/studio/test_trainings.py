"""The states of trainings, told from the bucket whatever became of the driver."""

import time

import pytest
from support.studio import driving, record, row, write_sweep

from scopemill.deploy.orchestrator.desk import row_fields
from scopemill.deploy.plan.progress import SaeProgress, SweepProgress, read_progress, write_progress
from scopemill.deploy.plan.state import SaeState
from scopemill.deploy.plan.withdrawn import withdraw
from scopemill.deploy.studio.bucket_reader import BucketReader, SaeFacts, SweepFacts
from scopemill.deploy.studio.parents import points_of, summary
from scopemill.deploy.studio.trainings import Trainings, state_of
from scopemill.deploy.studio.watcher import news_of

PLAN = record("one", 1)
SAE = PLAN.saes[0]
NEW = SaeState()


def told(facts: SaeState = NEW, run: SaeProgress | None = None, driver: str | None = None, ended: bool = False, error=None, **more):
    progress = SweepProgress(sweep="one", started=0, written=0, ended=ended, error=error, saes={SAE.name: run}) if run else None
    sweep = SweepFacts("one", PLAN, progress=progress, driver=driver, **more)
    return state_of(sweep, SAE, SaeFacts(facts), run)


SAVED = SaeState(checkpoints=(50,))
DONE = SaeState(finished=True, checkpoints=(100,))


@pytest.mark.parametrize(
    ("given", "state", "says"),
    [
        ({}, "pending", "no driver is at work"),
        ({"driver": "me"}, "pending", "its driver is starting"),
        ({"driver": "me", "run": SaeProgress(state="waiting")}, "pending", None),
        ({"driver": "me", "run": SaeProgress(state="training", step=3)}, "running", None),
        ({"driver": "me", "run": SaeProgress(state="finished", step=100)}, "running", "writes its last checkpoint"),
        ({"driver": "me", "run": SaeProgress(state="failed", reason="no memory")}, "failed", "no memory"),
        ({"driver": "me", "run": SaeProgress(state="interrupted", reason="lost")}, "pending", "shards that are made again: lost"),
        ({"driver": "me", "facts": DONE, "run": SaeProgress(state="finished")}, "completed", None),
        ({"facts": DONE}, "completed", None),
        ({"facts": SAVED, "run": SaeProgress(state="training", step=60)}, "stopped", "gone without a word"),
        ({"facts": SAVED, "run": SaeProgress(state="training"), "ended": True, "error": "a disk is full"}, "stopped", "a disk is full"),
        ({"run": SaeProgress(state="failed", reason="no memory"), "ended": True}, "failed", "no memory"),
        ({"facts": SAVED, "withdrawn": {SAE.name: "stopped"}}, "stopped", "on request; retry goes on from step 50"),
        ({"driver": "me", "run": SaeProgress(state="training"), "withdrawn": {SAE.name: "stopped"}}, "running", "being stopped"),
        ({"note": "its driver is starting"}, "pending", "its driver is starting"),
        ({"facts": SAVED}, "stopped", "retry goes on from step 50"),
    ],
)  # fmt: skip
def test_each_state_has_its_reason(given, state, says):
    found, reason = told(**given)
    assert found == state and (says in reason if says else reason is None)


def test_a_sweep_that_ran_without_the_studio_is_in_it(bucket):
    write_sweep(bucket, saes=3, finished=1)
    trainings = Trainings(BucketReader(bucket).scan())
    states = {entry.record.name: entry.training.state for entry in trainings.by_id.values()}
    assert list(states.values()) == ["completed", "stopped", "pending"]
    first = trainings.get("one:3.resid_post:256:topk:1").training
    assert first.progress.step == 100 and first.progress.loss == pytest.approx(0.01) and first.quality.fvu == pytest.approx(0.5)
    assert (first.layer, first.site, first.architecture, first.width, first.sparsity) == (3, "resid_post", "topk", 256, 1.0)


def test_a_run_at_work_is_followed_by_its_progress_and_its_end_is_news(bucket):
    plan = write_sweep(bucket, saes=2, finished=0)
    reader, sae = BucketReader(bucket), plan.saes[1]
    progress = SweepProgress(sweep="one", started=time.time(), written=time.time(), phase="training", done=5, total=20)

    def write(step: int, state: str, **more) -> Trainings:
        saes = {sae.name: SaeProgress(state=state, step=step, row=row_fields(row(step)), **more)}
        write_progress(bucket, progress.model_copy(update={"saes": saes}))
        return Trainings(reader.look())

    with driving(bucket, "one"):
        reader.scan()
        at_10, at_20, failed = write(10, "training"), write(20, "training"), write(20, "failed", reason="no memory")
        id = f"one:{sae.name.replace('/', ':')}"
        now = at_20.get(id).training
        assert (now.state, now.progress.step, now.progress.progress_pct, now.progress.eta) == ("running", 20, 20.0, pytest.approx(8.0))
        keys = {"step", "loss", "l0", "fvu", "dead", "lr", "sparsity_factor", "progress_pct", "eta"}
        (news,) = [(event, data) for channel, event, data in news_of(at_10, at_20) if channel == f"training/{id}"]
        assert news[0] == "progress" and keys <= news[1].keys()
        assert [
            (event, data["reason"])
            for channel, event, data in news_of(at_20, failed)
            if channel == f"training/{id}" and event != "progress"
        ] == [("failed", "no memory")]
        assert summary(failed.sweep("one"), failed.of_sweep("one")).phase_pct == 25.0
    assert Trainings(reader.look()).get(id).training.state == "failed"


def test_a_checkpoint_and_a_new_sweep_are_news(bucket):
    plan = write_sweep(bucket, saes=2, finished=1)
    reader = BucketReader(bucket)
    before = Trainings(reader.scan())
    bucket.write(plan.saes[1].layout.checkpoint(75).record, b"{}")
    write_sweep(bucket, "two", saes=1, finished=1)
    events = {(channel, event) for channel, event, _ in news_of(before, Trainings(reader.scan()))}
    assert (f"training/one:{plan.saes[1].name.replace('/', ':')}", "checkpoint") in events and ("trainings", "changed") in events


def test_a_deleted_training_is_gone_and_damaged_records_hide_nothing_else(bucket):
    plan = write_sweep(bucket, saes=3, finished=2)
    withdraw(bucket, "one", [plan.saes[0].name], "deleted")
    bucket.write(plan.layout.progress, b"{ broken")
    bucket.write(f"{plan.layout.requests}/0.json", b"{}")
    bucket.write("sweeps/broken/plan.json", b"{}")
    trainings = Trainings(BucketReader(bucket).scan())
    assert len(trainings.by_id) == 2 and read_progress(bucket, "one") is None
    assert "another version" in summary(trainings.sweep("broken"), []).reason


def test_the_frontier_is_of_each_group(bucket):
    write_sweep(bucket, saes=4, finished=3)
    points = points_of([entry.training for entry in Trainings(BucketReader(bucket).scan()).by_id.values()])
    assert [point.pareto_fvu for point in points] == [True, True, True, True], "L0 rises and FVU falls"
    assert [point.pareto_delta_loss for point in points] == [True, False, False, False], "both rise"
