"""Leases: never two holders at once, on clocks that disagree, with holders that freeze, die and write late."""

import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scopemill.proto.errors import Conflict
from scopemill.proto.storage import heartbeat, lease
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.heartbeat import BEAT_SECONDS, LIFE_SECONDS, STALE_SECONDS, Heartbeat, Holder, Tenure, Watch
from scopemill.proto.storage.lease import Lease

ROOT = "leases/sweeps/tiny"


@pytest.fixture
def strangers(monkeypatch):
    """Let every holder seem to be on a machine that tells nothing, so that only heartbeats count."""
    monkeypatch.setattr(heartbeat, "_machine", lambda: "")


def memory_bucket() -> Bucket:
    return Bucket(f"memory://{uuid.uuid4().hex}")


class SlowBucket(Bucket):
    """A bucket whose requests take a chosen number of seconds of a common clock, before and after they take effect."""

    def __init__(self, url: str, time: SimpleNamespace):
        super().__init__(url)
        self.time, self.delay, self.between = time, (0.0, 0.0), lambda: None

    def _do(self, verb, path, attempt):
        before, after = self.delay
        self.time.now += before
        self.between()  # another process acts while this request is on its way
        result = super()._do(verb, path, attempt)
        self.time.now += after
        return result


class Processes:
    """Some processes that want one lease, each on a clock of its own, by one bucket."""

    def __init__(self, shared: list[bool]):
        self.time, url = SimpleNamespace(now=0.0), f"memory://{uuid.uuid4().hex}"
        self.shared, self.buckets = shared, [SlowBucket(url, self.time) for _ in shared]
        self.leases = [self.started(i) for i in range(len(shared))]

    def started(self, i: int) -> Lease:
        return Lease(self.buckets[i], ROOT, "sweep tiny", self.shared[i], clock=lambda: self.time.now + 1e6 * i)

    def act(self, i: int) -> None:
        """Do what the process would do next: write its heartbeat, attempt the lease, or start anew if the lease is lost."""
        one = self.leases[i]
        if one._tenure is None:
            one.attempt()
        elif not one.beat():
            self.leases[i] = self.started(i)

    def act_slowly(self, i: int, seconds: float, meanwhile: int, nth: int) -> None:
        """Act while each request takes some time to arrive; before the n-th one arrives, another process acts."""
        bucket, requests = self.buckets[i], 0

        def between() -> None:
            nonlocal requests
            requests += 1
            if requests == nth and meanwhile != i:
                self.act(meanwhile)

        bucket.delay, bucket.between = (seconds, 0.0), between
        self.act(i)
        bucket.delay, bucket.between = (0.0, 0.0), lambda: None

    def check(self) -> None:
        holding = [i for i, one in enumerate(self.leases) if one.holds()]
        assert len(holding) <= 1 or all(self.shared[i] for i in holding)


EVENTS = st.one_of(
    st.tuples(st.just("act"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.sampled_from([5.0, 12.0, 37.0, 61.0])),
    st.tuples(st.just("slow"), st.integers(0, 2), st.sampled_from([0.0, 5.0, 15.0, 30.0]), st.integers(0, 2), st.integers(1, 5)),
    st.tuples(st.just("release"), st.integers(0, 2)),
)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(shared=st.lists(st.booleans(), min_size=3, max_size=3), events=st.lists(EVENTS, min_size=10, max_size=30))
@example(shared=[False] * 3, events=[("act", 0), ("act", 1), ("wait", 37.0), ("act", 1)])  # too early to take over
@example(shared=[True, False, False], events=[("act", 0), ("act", 1), ("wait", 37.0), ("slow", 0, 30.0, 1, 1)])  # written too late
@example(shared=[False] * 3, events=[("slow", 0, 0.0, 1, 2)])  # both found it free
@example(shared=[False] * 3, events=[("act", 0), ("release", 0), ("slow", 1, 0.0, 2, 2), ("act", 0)])
@example(shared=[False, True, True], events=[("slow", 0, 0.0, 1, 2)])
@example(shared=[False, True, True], events=[("slow", 1, 0.0, 0, 2)])
def test_never_do_two_hold_it(strangers, shared, events):
    """Whatever processes do, however late requests arrive, and however the processes' clocks differ."""
    processes = Processes(shared)
    for kind, *arguments in events:
        if kind == "act":
            processes.act(*arguments)
        elif kind == "wait":
            processes.time.now += arguments[0]
        elif kind == "slow":
            processes.act_slowly(*arguments)
        else:
            processes.leases[arguments[0]].release()
        processes.check()


def taken(bucket, shared=False, clock=lambda: 0.0) -> Lease:
    one = Lease(bucket, ROOT, "sweep tiny", shared, clock=clock)
    assert one.attempt() is None and one.holds()
    return one


def test_a_second_run_learns_the_holder_by_name():
    bucket = memory_bucket()
    first = taken(bucket)
    rival = Lease(bucket, ROOT, "sweep tiny").attempt()
    assert rival and rival.life == "alive" and rival.holder == first._holder
    assert str(rival) == str(Holder.myself()) or f"(process {first._holder.pid}, since " in str(rival)


def test_a_released_lease_is_free_at_once_and_its_numbers_are_never_given_twice(strangers):
    bucket = memory_bucket()
    for number in range(1, 4):
        one = taken(bucket)
        assert one._number == number
        one.release()
    assert bucket.names(ROOT) == ["00003.beat", "00003.json"]


def test_shared_holders_exclude_only_exclusive_ones(strangers):
    bucket = memory_bucket()
    first, second = taken(bucket, shared=True), taken(bucket, shared=True)
    assert Lease(bucket, ROOT, "it").attempt().holder in (first._holder, second._holder)
    first.release(), second.release()
    alone = taken(bucket)
    assert Lease(bucket, ROOT, "it", shared=True).attempt().holder == alone._holder


def test_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path):
    """A real process takes the lease and is killed without a chance to release it."""
    code = (
        "from scopemill.proto.storage.bucket import Bucket\nfrom scopemill.proto.storage.lease import Lease\n"
        f"print(Lease(Bucket({str(tmp_path)!r}), {ROOT!r}, 'it').attempt(), flush=True)\ninput()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert child.stdout.readline() == b"None\n"
    mine = Lease(Bucket(str(tmp_path)), ROOT, "it")
    rival = mine.attempt()
    assert rival.life == "alive" and rival.holder.pid == child.pid
    child.kill()
    child.wait()
    assert mine.attempt() is None


def test_a_stale_heartbeat_of_another_machine_is_taken_over(strangers):
    bucket, time = memory_bucket(), SimpleNamespace(now=0.0)
    taken(bucket)
    mine = Lease(bucket, ROOT, "it", clock=lambda: time.now)
    lives = []
    while (rival := mine.attempt()) is not None:
        lives.append(rival.life)
        time.now += 1.0
    assert set(lives) == {"unknown"} and STALE_SECONDS < time.now <= STALE_SECONDS + 2


def test_a_heartbeat_that_goes_on_is_seen(strangers):
    bucket = memory_bucket()
    holder, mine = taken(bucket), Lease(bucket, ROOT, "it", clock=lambda: 0.0)
    assert mine.attempt().life == "unknown"
    assert holder.beat()
    assert mine.attempt().life == "alive"


def test_a_damaged_heartbeat_counts_as_a_rival_until_it_is_stale(strangers):
    bucket, time = memory_bucket(), SimpleNamespace(now=0.0)
    taken(bucket)
    bucket.write(f"{ROOT}/00001.beat", b"{")
    mine = Lease(bucket, ROOT, "it", clock=lambda: time.now)
    assert str(mine.attempt()) == "a process whose record is damaged"
    time.now = STALE_SECONDS + 1
    assert mine.attempt() is None


def test_the_block_of_a_lost_lease_ends_with_who_took_it(strangers, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    bucket, lost = memory_bucket(), []
    one = Lease(bucket, ROOT, "sweep tiny", on_lost=lambda: lost.append(True))
    assert one.attempt() is None
    with pytest.raises(Conflict, match=r"sweep tiny is not held by this process any more: mallory on mars \(process 1, .*took it over"):
        with one:
            other = replace(Holder.myself(), user="mallory", host="mars", pid=1)
            bucket.write(f"{ROOT}/00002.json", Heartbeat(other, 1).to_bytes())
            one._watching.join(5)
    assert lost == [True]


def test_the_heartbeat_goes_on_while_the_block_lasts_and_ends_with_it(strangers, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    bucket = memory_bucket()
    one = Lease(bucket, ROOT, "it")
    assert one.attempt() is None
    with one:
        first = None
        while first is None or Heartbeat.parse(bucket.read(f"{ROOT}/00001.beat")).count < first + 3:
            if bucket.exists(f"{ROOT}/00001.beat") and first is None:
                first = Heartbeat.parse(bucket.read(f"{ROOT}/00001.beat")).count
    assert json.loads(bucket.read(f"{ROOT}/00001.beat"))["released"] is True


def test_on_a_real_s3_server_one_of_several_wins(s3_url, strangers):
    bucket = Bucket(f"{s3_url}/lease-{uuid.uuid4().hex}")
    first = taken(bucket, clock=heartbeat.now)
    second = Lease(bucket, ROOT, "it")
    assert second.attempt().holder == first._holder
    assert first.beat() and second.attempt().life == "alive"
    first.release()
    assert second.attempt() is None


def test_a_heartbeat_that_is_written_too_late_does_not_count():
    tenure = Tenure(0.0, 1.0)
    assert tenure.beaten(20.0, 39.0) and tenure.holds(59.0)
    assert not tenure.beaten(50.0, 20.0 + LIFE_SECONDS + 1) and not tenure.holds(61.0)
    assert BEAT_SECONDS * 2 < LIFE_SECONDS < STALE_SECONDS  # one heartbeat may fail


def test_a_watch_needs_no_common_clock():
    watch, beat = Watch(), Heartbeat(replace(Holder.myself(), machine=""), 1)
    assert [watch.see("a", beat.to_bytes(), clock) for clock in (1e9, 1e9 + 59, 1e9 + 61)] == ["unknown", "unknown", "dead"]
    assert watch.see("a", replace(beat, count=2).to_bytes(), 1e9 + 62) == "alive"
    assert watch.see("a", replace(beat, count=2, released=True).to_bytes(), 1e9 + 63) == "dead"


def test_a_lease_whose_folder_was_deleted_is_lost_also_to_one_of_the_same_number(strangers):
    bucket = memory_bucket()
    first = taken(bucket)
    bucket.remove_tree(ROOT)
    assert not first.beat() and not first.holds()
    first = taken(bucket)
    bucket.remove_tree(ROOT)
    second = taken(bucket)
    assert second._number == first._number == 1
    assert not first.beat() and second.beat()
