"""Leases of sweeps: which ones a run takes, how it waits or is refused, and that two sweeps do not train one SAE."""

import threading
import time
import uuid

import pytest

from scopemill.deploy.cluster import leases
from scopemill.deploy.cluster.leases import Wanted, check_no_overlap, held, leases_of
from scopemill.deploy.plan.record import PassRecord, PlanRecord, SaeRecord, write_plan
from scopemill.deploy.plan.state import SweepState
from scopemill.proto.errors import Conflict
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage import lease as lease_module
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.heartbeat import Heartbeat, Holder
from scopemill.proto.storage.lease import Lease


@pytest.fixture
def bucket() -> Bucket:
    return Bucket(f"memory://{uuid.uuid4().hex}")


def record(name: str = "mine", datasets: tuple[str, ...] = ("d",), saes: tuple[str, ...] = (), **changed) -> PlanRecord:
    own = tuple(SaeRecord(name=sae, root=f"saes/m/h/{sae}", steps=8, inputs=("blocks.0.hook_resid_post",), targets=()) for sae in saes)
    passes = tuple(PassRecord(dataset=dataset, shards=3, saes=own if dataset == datasets[0] else ()) for dataset in datasets)
    flags = {"rolling": False, "sheds": False, "halving": False} | changed
    return PlanRecord(digest="0", name=name, text=datasets[0], evaluation_settings={}, passes=passes, **flags)


def wanted(bucket: Bucket, plan: PlanRecord, **options) -> dict[str, bool]:
    return {one.root: one.shared for one in leases_of(plan, SweepState.read(bucket, plan), **options)}


def test_runs_that_keep_their_shards_share_a_dataset_and_runs_that_delete_some_do_not(bucket):
    assert wanted(bucket, record()) == {"leases/sweeps/mine": False, "leases/activations/d": True}
    for deleting in ({"rolling": True}, {"sheds": True}):
        assert wanted(bucket, record(datasets=("a", "b"), **deleting)) == {
            "leases/activations/a": False, "leases/activations/b": False, "leases/sweeps/mine": False,
        }  # fmt: skip
    assert wanted(bucket, record(), alone=True)["leases/activations/d"] is False
    bucket.write(DatasetLayout("d").rolling, b"{}")  # made by a rolling run, and to be kept from now on
    assert wanted(bucket, record())["leases/activations/d"] is False


def test_a_second_run_is_refused_by_name_and_one_that_waits_begins_when_the_first_has_ended(bucket, monkeypatch):
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.02)
    order, said, inside, leave = [], [], threading.Event(), threading.Event()

    def first() -> None:
        with held(bucket, [Wanted("leases/sweeps/s", "sweep s")], False, said.append):
            inside.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        with held(bucket, [Wanted("leases/sweeps/s", "sweep s")], True, said.append):
            order.append("second")

    running = threading.Thread(target=first)
    running.start()
    assert inside.wait(10)
    with pytest.raises(
        Conflict, match=r"^sweep s is in use by \S+ on \S+ \(process \d+, since .* UTC\): stop that run first, or give --wait"
    ):
        with held(bucket, [Wanted("leases/sweeps/s", "sweep s")], False, said.append):
            pytest.fail("two runs held the lease at once")
    waiting = threading.Thread(target=second)
    waiting.start()
    while not said:
        time.sleep(0.01)
    leave.set()
    running.join(10), waiting.join(10)
    assert order == ["first", "second"] and len(said) == 1 and said[0].endswith("waiting until it has ended")


def test_a_run_that_loses_its_lease_is_interrupted_and_says_to_whom(bucket, monkeypatch):
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.02)
    with pytest.raises(Conflict, match="sweep s is not held by this process any more: .* took it over; everything committed is kept"):
        with held(bucket, [Wanted("leases/sweeps/s", "sweep s")], False, print):
            bucket.write("leases/sweeps/s/00002.json", Heartbeat(Holder.myself(), 1).to_bytes())
            time.sleep(20)  # as a driver that waits for its actors


def test_two_sweeps_that_run_at_once_do_not_train_the_same_sae(bucket):
    mine, theirs = record("mine", saes=("x", "y")), record("theirs", datasets=("e",), saes=("y", "z"))
    write_plan(bucket, theirs)
    check_no_overlap(bucket, mine, ["x", "y"])  # the other is not running
    running = Lease(bucket, "leases/sweeps/theirs", "sweep theirs")
    assert running.attempt() is None
    with pytest.raises(Conflict, match="1 SAEs of this sweep, such as y, belong to sweep theirs too, which is run by "):
        check_no_overlap(bucket, mine, ["x", "y"])
    check_no_overlap(bucket, mine, ["x"])  # y is finished
