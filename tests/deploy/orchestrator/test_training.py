"""Training on Ray: many SAEs in few processes, trainers that die, SAEs that rivals dominate."""

import io
from collections.abc import Callable, Collection

import pytest
import ray
from bench.many_saes import BATCH, STEPS, many
from rich.console import Console
from support import tiny_sweep
from support.tiny_sweep import planned, quiet

from scopemill.deploy.catalog.listing import stopped_early
from scopemill.deploy.catalog.status import read_status, status_table
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.orchestrator.halving import Halving, Point
from scopemill.deploy.orchestrator.node_servers import NodeServers
from scopemill.deploy.orchestrator.pool import Pool
from scopemill.deploy.orchestrator.training import Training
from scopemill.deploy.plan.stopped import read_stopped
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.proto.errors import ScopemillError
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.checksums import read_record

CHECKSUM = 4  # bytes after each chunk


@pytest.mark.parametrize(("at_once", "group", "groups", "cohorts"), [(3, 1, 24, 8), (2, 4, 6, 4)])
def test_many_saes_share_few_processes_and_each_streams_bytes_are_read_once_for_a_cohort(
    tmp_path, text, harvests, at_once, group, groups, cohorts
):
    measured = many(tmp_path, text, harvests, hooks=2, widths=3, sparsities=4, at_once=at_once, group=group)
    processes, series, _ = measured.scraped["trainer"]
    assert (measured.saes, processes) == (24, at_once)
    assert series <= at_once * group * 20, "finished SAEs leave no series"
    row = 192 * 2
    assert measured.bytes_served == groups * STEPS * BATCH * row, "one copy for each group"
    # Cohorts of a stream one after the other, each reading from the first row on: chunks are whole shards of 2,048 rows here.
    assert measured.bytes_read <= cohorts * 2 * (2048 * row + CHECKSUM)
    assert measured.calls <= 60 * measured.seconds


class Listens(Reporter):
    """Call ``act`` when a line with the given words is reported for the first time."""

    def __init__(self, words: str = "", act: Callable[[], None] = lambda: None):
        super().__init__(Console(file=io.StringIO(), width=300))
        self._words, self._act = words, act

    def say(self, text: str) -> None:
        super().say(text)
        if self._words and self._words in text:
            self._words = ""
            self._act()

    @property
    def said(self) -> str:
        return self.console.file.getvalue()


@pytest.fixture
def harvested(tmp_path, text, harvests) -> Callable[..., SweepPlan]:
    """Plan two SAEs of one stream, harvested."""

    def plan_of(steps: int = 12, server: dict | None = None, **train) -> SweepPlan:
        train = {"tokens": 256 * steps, "checkpoint_every": steps // 2} | train
        data = tiny_sweep.sweep(str(tmp_path / "bucket"), text, harvest={"layers": [3]}, server=server or {}, train=train)
        plan = planned(tmp_path, data | {"file_sd": str(tmp_path / "targets.json")})
        harvests(plan)
        return plan

    return plan_of


def test_a_failed_sae_is_retried_after_the_others_from_its_last_checkpoint(harvested):
    plan = harvested(steps=24, at_once=1)
    in_the_way = plan.saes[0].layout.checkpoint(24).root  # a file where the folder of the second checkpoint has to be
    plan.bucket.write(in_the_way, b"")
    reporter = Listens("will be retried", lambda: plan.bucket.remove(in_the_way))
    SweepDriver(plan, reporter).train()
    assert "2 finished" in reporter.said and in_the_way in reporter.said
    assert reporter.said.count("will be retried") == 1


def test_bad_input_is_not_retried_and_the_summary_names_each_failed_sae(harvested):
    plan = harvested(learning_rate=1e30)
    reporter = Listens()
    with pytest.raises(ScopemillError, match="2 of 2 SAEs failed(.|\n)*training diverged"):
        SweepDriver(plan, reporter).train()
    assert "2 failed" in reporter.said and "retried" not in reporter.said
    assert [line.split()[1:3] for line in reporter.said.splitlines() if line.startswith("3.resid_post")] == [["failed", "1"]] * 2


@pytest.mark.parametrize(("victim", "group"), [("server", 1), ("trainer", 2)])
def test_a_process_that_died_for_good_is_replaced(harvested, monkeypatch, victim, group):
    plan, killed = harvested(steps=400, at_once=2, group=group), []
    take, expect = Pool.take, NodeServers.expect

    def noted_take(self, wanted):
        slots = take(self, wanted)
        killed.append(slots[0].actor) if victim == "trainer" else None
        return slots

    def noted_expect(self, *arguments):
        where = expect(self, *arguments)
        killed.append(where.server) if victim == "server" else None
        return where

    monkeypatch.setattr(Pool, "take", noted_take)
    monkeypatch.setattr(NodeServers, "expect", noted_expect)
    reporter, struck = Listens(), []

    def strike(training: Collection[str]) -> None:
        if killed and not struck:
            struck.append(killed[0])
            ray.kill(killed[0])

    (part,) = plan.passes
    driver = SweepDriver(plan, reporter)
    Training(part, plan.read_state().passes[0], part.saes, driver.targets, reporter, driver.desk).run(strike)
    assert all(plan.bucket.exists(sae.layout.config) for sae in plan.saes) and "will be retried" in reporter.said
    assert len(killed) > 1 and struck[0] not in killed[1:], "another process took its place"


@pytest.mark.parametrize("group", [1, 2])
def test_a_dominated_sae_stops_at_its_rung_and_resumes_once_its_record_is_deleted(harvested, monkeypatch, group):
    plan = harvested(steps=400, halving={"rungs": [0.04, 0.9], "keep": 0.5}, group=group)
    good, bad = plan.saes
    know = Halving.know
    behind = Point(1e9, 1e9)  # in place of the measured row, so that the other SAE dominates
    monkeypatch.setattr(Halving, "know", lambda self, name, step, point: know(self, name, step, behind if name == bad.name else point))
    reporter = Listens()
    SweepDriver(plan, reporter).train()
    assert "1 finished, 1 stopped" in reporter.said

    record = read_stopped(plan.bucket, bad.layout)
    assert (record.step, record.dominated_by) == (16, [good.name])
    status = read_status(plan.bucket, plan.record)
    finished, stopped = status.saes
    assert finished.finished and not finished.stopped
    assert not stopped.finished and stopped.stopped == f"dominated at step 16 by {good.name}" and 16 <= stopped.step < 400
    assert list(status_table(status).columns[2].cells) == ["finished", "stopped"] and status.finished
    assert list(stopped_early(plan.config.bucket)) == [bad.layout.root.removeprefix("saes/")]
    assert not SweepDriver(plan, quiet()).has_work(["train"]), "the same command does not resume the stopped SAE"

    plan.bucket.remove(bad.layout.stopped)
    SweepDriver(plan, quiet()).train()
    assert read_status(plan.bucket, plan.record).saes[1].finished, "a decided rung is not decided again"
    (first, last) = read_record(plan.bucket, SweepLayout("tiny").halving)["verdicts"]
    assert (first["step"], list(first["stopped"])) == (16, [bad.name])
    assert (last["step"], list(last["stopped"])) == (360, []), "the later rung was decided without the stopped SAE"
