"""A leader and its followers, without Ray: one stream, one checkpoint, whatever the number of parts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from prometheus_client import REGISTRY
from support.assignments import STEPS, assign, progress, rows, train, weights
from support.wide import finish, in_processes

from scopemill.proto.errors import InputError, RankLost, ScopemillError
from scopemill.proto.layout import SaeLayout
from scopemill.trainer import load_sae
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.worker.actor import Trainer
from scopemill.trainer.worker.group_trainer import GroupTrainer
from scopemill.trainer.worker.sae_trainer import SaeTrainer

KIND = {"initial_l0": 6, "initial_decoder_bias": "mean"}


def stop_at(monkeypatch, step: int) -> None:
    """A run is asked to stop while it works on a step."""
    take = GroupTrainer._step

    def stopping(self, index, rows):
        take(self, index, rows)
        if index + 1 == step:
            self.stop()

    monkeypatch.setattr(GroupTrainer, "_step", stopping)


def tensors(data: bytes) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(data)


def close(found: bytes, wanted: bytes) -> None:
    mine, its = tensors(found), tensors(wanted)
    assert mine.keys() == its.keys()
    for name, tensor in its.items():
        torch.testing.assert_close(mine[name].double(), tensor.double(), rtol=1e-4, atol=1e-5)


def test_the_files_are_those_of_one_process_and_nothing_tells_how_many_there_were(bucket, server):
    alone, wide = assign("alone", **KIND), assign("wide", **KIND)
    assert finish(bucket, alone, server.address, 1) == finish(bucket, wide, server.address, 3) == STEPS
    names = [sorted(name.removeprefix(one.root) for name in bucket.find(one.root)) for one in (alone, wide)]
    assert names[0] == names[1] and len(names[0]) > 8
    close(weights(bucket, wide), weights(bucket, alone))
    layouts = [SaeLayout(one.root) for one in (alone, wide)]
    (record, other) = (checkpoint.read_record(bucket, layout, STEPS) for layout in layouts)
    assert replace(record, parts=None) == replace(other, parts=None), "but for checksums: sums have another order"
    close(*(bucket.read(layout.checkpoint(STEPS).optimizer) for layout in reversed(layouts)))
    for mine, its in zip(rows(bucket, wide), rows(bucket, alone), strict=True):
        assert mine == pytest.approx(its, rel=1e-4)
    x = torch.randn(5, 8)
    finished = [load_sae(f"{bucket.url}/{one.root}") for one in (wide, alone)]
    torch.testing.assert_close(finished[0](x), finished[1](x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("turns", [(2, 1), (2, 3), (1, 2), (3, 3)])
def test_a_checkpoint_goes_on_in_any_number_of_processes(bucket, server, monkeypatch, turns):
    reference, broken = assign("reference", **KIND), assign("broken", **KIND)
    finish(bucket, reference, server.address, turns[1])
    first, then = turns
    with monkeypatch.context() as patched:
        stop_at(patched, 21)
        assert finish(bucket, broken, server.address, first) == 21
    assert checkpoint.steps_of(bucket, SaeLayout(broken.root)) == [16, 21]
    assert finish(bucket, broken, server.address, then) == STEPS
    if first == then:
        assert weights(bucket, broken) == weights(bucket, reference), "bit for bit"
    else:
        close(weights(bucket, broken), weights(bucket, reference))
    assert [row["step"] for row in rows(bucket, broken)] == [4, 8, 12, 16, 20, 21, 24, 28, 32, 36, 40]


def test_a_start_from_a_finished_sae_is_dealt_out(bucket, server):
    first = assign("first", **KIND)
    finish(bucket, first, server.address, 1)
    again = {"initial_sae": f"{bucket.url}/{first.root}", "seed": 1}
    alone, wide = assign("alone", **again), assign("wide", **again)
    finish(bucket, alone, server.address, 1)
    finish(bucket, wide, server.address, 2)
    close(weights(bucket, wide), weights(bucket, alone))


def test_batches_that_are_lost_are_lost_to_all_parts(bucket, server, monkeypatch):
    take = SaeTrainer.take
    monkeypatch.setattr(SaeTrainer, "take", lambda self, index, batch: None if 9 <= index < 13 else take(self, index, batch))
    alone, wide = assign("alone"), assign("wide")
    finish(bucket, alone, server.address, 1)
    finish(bucket, wide, server.address, 2)
    assert checkpoint.read_record(bucket, SaeLayout(wide.root), STEPS).skipped == 4
    close(weights(bucket, wide), weights(bucket, alone))


def test_a_finished_one_ends_at_once_and_followers_with_it(bucket, server):
    wide = assign("wide")
    finish(bucket, wide, server.address, 2)
    bucket.remove(SaeLayout(wide.root).config)
    assert finish(bucket, wide, "tcp://127.0.0.1:1", 2) == STEPS, "no stream is asked for"
    assert bucket.exists(SaeLayout(wide.root).config)


def test_what_goes_wrong_at_the_leader_is_its_outcome_and_frees_the_followers(bucket, server):
    wide = replace(assign("wide"), stream=replace(assign("wide").stream, dataset="missing"))
    outcomes, errors = in_processes(bucket, wide, server.address, 3)
    (outcome,) = outcomes.values()
    assert isinstance(outcome, ScopemillError) and not isinstance(outcome, RankLost)
    assert all(isinstance(error, RankLost) for error in errors)


def test_bad_input_at_the_start_is_told_once(bucket, server):
    outcomes, errors = in_processes(bucket, assign("wide", initial_sae=f"{bucket.url}/nothing"), server.address, 2)
    assert isinstance(outcomes["sae-wide"], InputError) and isinstance(errors[0], RankLost)


def test_what_goes_wrong_at_a_follower_is_said_by_it_and_frees_the_leader(bucket, server, monkeypatch):
    step = Loop.step

    def fails(self, *batch):
        if not self.sae.shard.leads and self.step_number == 5:
            raise MemoryError("no room")
        step(self, *batch)

    monkeypatch.setattr(Loop, "step", fails)
    outcomes, errors = in_processes(bucket, assign("wide"), server.address, 3)
    assert isinstance(outcomes["sae-wide"], RankLost)
    assert sorted(type(error).__name__ for error in errors) in (["MemoryError", "MemoryError"], ["MemoryError", "RankLost"])


def test_a_leader_that_was_started_anew_has_no_meeting(bucket, server):
    with pytest.raises(RankLost, match="sae-wide at 127.0.0.1:7 died before training started"):
        Trainer(bucket.url, 1, False).lead(assign("wide"), server.address, None, "127.0.0.1:7", 2)


def test_only_the_leader_tells_how_far_it_is(bucket, server):
    leader, follower = (Trainer(bucket.url, 1, False) for _ in range(2))
    train(follower, [assign("before")], server.address)
    assert progress(follower).step == STEPS
    place, wide = leader.meet(True), assign("wide")
    with ThreadPoolExecutor(2) as pool:
        following = pool.submit(follower.follow, wide, place, 1, 2)
        assert leader.lead(wide, server.address, None, place, 2) == {"sae-wide": STEPS}
        assert following.result() is None
    assert progress(leader).step == STEPS and follower.progress() == []
    assert REGISTRY.get_sample_value("scopemill_trainer_step", {"sae": "sae-before"}) is None
