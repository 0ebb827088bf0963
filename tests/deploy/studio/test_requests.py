"""What people ask of a sweep: carried out by whoever holds its lease, once and to the same end if it is done twice."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.studio import write_sweep

from scopemill.deploy.cli.run import PHASES, _carry_on
from scopemill.deploy.orchestrator.desk import Desk
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.orchestrator.requests import carry_out
from scopemill.deploy.plan.progress import read_progress
from scopemill.deploy.plan.requests import Request, read_requests, write_request
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.withdrawn import read_withdrawn
from scopemill.proto.errors import PartlyFailed
from scopemill.proto.storage.bucket import Bucket


@pytest.fixture
def plan(bucket):
    return write_sweep(bucket, saes=3, finished=1)


def ask(bucket, action, *saes) -> Request:
    request = Request.new(action, tuple(sae.name for sae in saes))
    write_request(bucket, "one", request)
    return request


def test_a_stopped_sae_is_not_trained_again_before_a_retry(bucket, plan):
    finished, half, new = plan.saes
    ask(bucket, "stop", finished, half, new)
    (request,) = read_requests(bucket, "one")
    assert carry_out(bucket, plan, request, busy=()) and not read_requests(bucket, "one")
    state = SweepState.read(bucket, plan)
    assert state.unfinished == [] and state.saes[finished.name].withdrawn is None, "a finished one stays what it is"
    bucket.write(half.layout.stopped, b"{}")
    assert carry_out(bucket, plan, ask(bucket, "retry", half), busy=())
    assert SweepState.read(bucket, plan).unfinished == [half.name] and not bucket.exists(half.layout.stopped)


def test_a_busy_sae_is_deleted_once_its_trainer_has_left_it(bucket, plan):
    half = plan.saes[1]
    request = ask(bucket, "delete", half)
    assert not carry_out(bucket, plan, request, busy=[half.name])
    assert bucket.exists(half.layout.checkpoint(50).record) and read_withdrawn(bucket, "one") == {half.name: "deleted"}
    assert carry_out(bucket, plan, request, busy=()) and not bucket.find(half.root)
    assert carry_out(bucket, plan, request, busy=()), "once more, to the same end"
    assert len([path for path in bucket.find("saes") if path.endswith("cfg.json")]) == 1


def test_an_sae_that_another_sweep_has_too_is_kept_for_that_one(bucket, plan):
    from scopemill.deploy.plan.record import write_plan

    write_plan(bucket, plan.model_copy(update={"name": "two"}))
    assert carry_out(bucket, plan, ask(bucket, "delete", plan.saes[0]), busy=())
    assert bucket.exists(plan.saes[0].layout.config) and read_withdrawn(bucket, "two") == {}


def test_the_later_of_two_requests_for_an_sae_waits_for_the_earlier(bucket, plan):
    half = plan.saes[1]
    desk = Desk(bucket, plan)
    with desk:
        ask(bucket, "stop", half)
        ask(bucket, "retry", half)
        desk.look()
        assert desk.carry_out(busy=[half.name]) == [] and read_withdrawn(bucket, "one") == {half.name: "stopped"}
        assert [request.action for request in desk.carry_out()] == ["stop", "retry"]
    assert read_withdrawn(bucket, "one") == {} and read_requests(bucket, "one") == []


class Phases(SweepDriver):
    """A driver whose phases only note that they were called; while it evaluates, somebody asks for a retry."""

    def __init__(self, bucket, plan):
        self.desk, self.called, self.plan = Desk(bucket, plan), [], SimpleNamespace(read_state=lambda: None)
        for phase in PHASES:
            setattr(self, phase, lambda state, phase=phase: self.called.append(phase))
        self.evaluate = lambda state: (self.called.append("evaluate"), ask(bucket, "retry", plan.saes[1]), self.desk.look())

    def has_work(self, phases, state=None):
        return bool(self.called)  # so that no cluster is started for the first round


@pytest.mark.parametrize("phases", [PHASES, ("evaluate",)])
def test_a_retry_that_comes_while_a_run_evaluates_is_trained_by_it_or_left_to_the_next(bucket, plan, phases):
    carry_out(bucket, plan, ask(bucket, "stop", plan.saes[1]), busy=())
    driver = Phases(bucket, plan)
    with driver.desk, pytest.MonkeyPatch.context() as patch:
        patch.setattr("scopemill.deploy.cli.run._report", lambda *_: None)
        _carry_on(driver, phases, None, None)
        assert [request.action for request in read_requests(bucket, "one")] == ["retry"]
        if "train" in phases:
            assert driver.called == ["harvest", "train", "finetune", "evaluate"], "what comes after waits for the retry"
            assert driver.is_asked_again(phases) and read_withdrawn(bucket, "one") == {} and read_requests(bucket, "one") == []
        else:
            assert not driver.is_asked_again(phases) and read_withdrawn(bucket, "one") == {plan.saes[1].name: "stopped"}
            assert [request.action for request in read_requests(bucket, "one")] == ["retry"]


def test_a_desk_writes_how_the_run_ended_and_nothing_outside_of_its_block(bucket, plan):
    desk = Desk(bucket, plan)
    desk.said("a line")
    assert read_progress(bucket, "one") is None
    with pytest.raises(PartlyFailed), desk:
        desk.progressed("training", 1, 4)
        raise PartlyFailed("1 of 4 SAEs failed")
    found = read_progress(bucket, "one")
    assert (found.ended, found.error, found.phase, found.done, found.says) == (True, "1 of 4 SAEs failed", "training", 1, ["a line"])


@settings(max_examples=25, deadline=None)
@given(actions=st.lists(st.tuples(st.sampled_from(["stop", "retry", "delete"]), st.integers(0, 2), st.booleans()), max_size=8))
def test_whatever_is_asked_and_however_often_it_is_carried_out_the_last_word_counts(tmp_path_factory, actions):
    bucket = Bucket(str(tmp_path_factory.mktemp("asked")))
    plan = write_sweep(bucket, saes=3, finished=1)
    stopped: dict[str, str] = {}
    there = {plan.saes[0].name}
    for action, number, twice in actions:
        sae = plan.saes[number]
        for request in [ask(bucket, action, sae)] * (2 if twice else 1):
            assert carry_out(bucket, plan, request, busy=())
        if action == "retry":
            stopped.pop(sae.name, None)
        elif action == "delete":
            stopped[sae.name] = "deleted"
            there.discard(sae.name)
        elif sae.name not in there and stopped.get(sae.name) != "deleted":
            stopped[sae.name] = "stopped"
    assert read_withdrawn(bucket, "one") == stopped and read_requests(bucket, "one") == []
