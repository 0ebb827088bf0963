"""A run of one SAE without Ray, from a real activation server in this process: it finishes, stops and goes on; and the actor around it."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.assignments import HOOK, STEPS, STREAM, assign, progress, rows, train, weights
from support.synthetic import make_dataset

from scopemill.activation_server import client
from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer
from scopemill.proto import metrics
from scopemill.proto.dataset import HookStats, pack_vector
from scopemill.proto.errors import Conflict, InputError, MissingObject, ScopemillError, ServerGone
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer import load_sae
from scopemill.trainer.config.wiring import Port, Wiring
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.training import checkpoint
from scopemill.trainer.worker import group_trainer as run_module
from scopemill.trainer.worker.actor import Trainer
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.group_trainer import GroupTrainer
from scopemill.trainer.worker.sae_trainer import SaeTrainer


@pytest.fixture(autouse=True)
def threads_of_torch():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class StopsAt(GroupTrainer):
    """Is asked to stop while it works on a step."""

    stop_step = 0

    def _step(self, index, rows) -> None:
        super()._step(index, rows)
        if index + 1 == self.stop_step:
            self.stop()


class DiesAt(StopsAt):
    """Is gone in the middle of its work, without a word."""

    def _step(self, index, rows) -> None:
        GroupTrainer._step(self, index, rows)
        if index + 1 == self.stop_step:
            raise KeyboardInterrupt


def make(kind: type[GroupTrainer], bucket: Bucket, assignment: Assignment, stop_step: int = 0) -> GroupTrainer:
    trainer = kind(bucket, [assignment])
    trainer.stop_step = stop_step
    return trainer


def run(kind: type[GroupTrainer], bucket: Bucket, assignment: Assignment, server: ActivationServer, stop_step: int = 0) -> int:
    return train(make(kind, bucket, assignment, stop_step), server.address)


@pytest.mark.parametrize("architecture", ["jumprelu", "standard", "gated", "skip"])
def test_a_run_trains_to_the_last_step_exports_and_keeps_its_history(bucket, server, architecture):
    assignment = assign(architecture=architecture)
    trainer = make(GroupTrainer, bucket, assignment)
    assert progress(trainer).step == 0
    assert train(trainer, server.address) == STEPS
    layout = SaeLayout(assignment.root)
    assert checkpoint.steps_of(bucket, layout) == [16, 32, 40]
    record = checkpoint.read_record(bucket, layout, 40)
    assert (record.step, record.tokens) == (40, 640) and Wiring.from_json(record.wiring) == Wiring((Port(HOOK, 8, 2.5),))
    assert record.config == assignment.config.model_dump(mode="json")

    trained, _ = checkpoint.load_sae(bucket, layout, 40)
    exported, folded = load_sae(f"{bucket.url}/{assignment.root}"), fold(trained, [2.5], [2.5])
    assert all(torch.equal(p, q) for p, q in zip(exported.parameters(), folded.parameters(), strict=True))
    assert json.loads(bucket.read(layout.config))["metadata"]["hook_name"] == HOOK
    assert json.loads(bucket.read(layout.provenance))["sweep"] == "test"

    history = rows(bucket, assignment)
    assert [row["step"] for row in history] == list(range(4, 41, 4)) and history[-1]["tokens"] == 640
    assert history[-1]["fvu"] < history[0]["fvu"], "it learnt something"
    assert progress(trainer).step == progress(trainer).outcome == 40 and progress(trainer).last.fvu == history[-1]["fvu"]


def test_training_starts_at_the_mean_of_the_scaled_activations(bucket, server):
    assignment = assign(learning_rate=1e-30, initial_decoder_bias="mean")
    run(GroupTrainer, bucket, assignment, server)
    sae, _ = checkpoint.load_sae(bucket, SaeLayout(assignment.root), STEPS)
    np.testing.assert_allclose(sae.b_dec.detach().numpy(), np.linspace(-1, 1, 8) / 2.5, rtol=1e-6)


@pytest.mark.parametrize("stop_step", [1, 15, 16, 17, 39])
def test_a_run_that_was_stopped_checkpoints_and_the_next_one_ends_with_the_same_bits(bucket, server, stop_step):
    whole, stopped = assign("whole"), assign("stopped")
    run(GroupTrainer, bucket, whole, server)
    assert run(StopsAt, bucket, stopped, server, stop_step) == stop_step
    layout = SaeLayout(stopped.root)
    assert checkpoint.steps_of(bucket, layout)[-1] == stop_step and not bucket.exists(layout.config)
    assert run(GroupTrainer, bucket, stopped, server) == STEPS
    assert weights(bucket, stopped) == weights(bucket, whole)
    place = SaeLayout(whole.root), layout
    assert bucket.read(place[0].weights) == bucket.read(place[1].weights), "what is exported too"
    assert bucket.read(place[0].checkpoint(STEPS).optimizer) == bucket.read(place[1].checkpoint(STEPS).optimizer)
    final = [(row["step"], row["dead_latents"]) for row in rows(bucket, stopped)]
    assert final[-1] == [(row["step"], row["dead_latents"]) for row in rows(bucket, whole)][-1]
    assert sorted({step for step, _ in final}) == [step for step, _ in final]


@pytest.mark.parametrize("die_step", [3, 20, 33])
def test_a_run_that_died_goes_on_at_its_newest_checkpoint_with_weights_and_history_unchanged(bucket, server, die_step):
    whole, died = assign("whole"), assign("died")
    run(GroupTrainer, bucket, whole, server)
    with pytest.raises(KeyboardInterrupt):
        run(DiesAt, bucket, died, server, die_step)
    assert max(checkpoint.steps_of(bucket, SaeLayout(died.root)), default=0) == die_step // 16 * 16
    assert run(GroupTrainer, bucket, died, server) == STEPS
    assert weights(bucket, died) == weights(bucket, whole)
    assert rows(bucket, died) == rows(bucket, whole)


def test_a_run_that_died_between_its_history_and_its_checkpoint_does_those_steps_again(bucket, server, monkeypatch):
    whole, died, save = assign("whole"), assign("died"), checkpoint.save
    run(GroupTrainer, bucket, whole, server)

    def dies(bucket, layout, wiring, loop, *data) -> None:
        if loop.step_number == 32:
            raise KeyboardInterrupt
        save(bucket, layout, wiring, loop, *data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            run(GroupTrainer, bucket, died, server)
    assert rows(bucket, died)[-1]["step"] == 32 and checkpoint.steps_of(bucket, SaeLayout(died.root)) == [16]
    assert run(GroupTrainer, bucket, died, server) == STEPS
    assert weights(bucket, died) == weights(bucket, whole) and rows(bucket, died) == rows(bucket, whole)


def test_stopping_again_and_again_loses_nothing(bucket, server):
    whole, stopped = assign("whole"), assign("stopped")
    run(GroupTrainer, bucket, whole, server)
    for step in (1, 2, 17, 25, 39, 40):
        assert run(StopsAt, bucket, stopped, server, step) == step
    assert weights(bucket, stopped) == weights(bucket, whole)
    assert bucket.exists(SaeLayout(stopped.root).config), "stopped on its last step, it is finished all the same"


def test_a_stop_before_the_first_step_leaves_nothing_behind(bucket, server):
    trainer = make(GroupTrainer, bucket, assign())
    trainer.stop()
    assert train(trainer, server.address) <= 1, "a batch that is already there may be used"
    assert not bucket.exists(SaeLayout(assign().root).config)


def test_a_run_that_waits_for_data_stops_and_checkpoints_too(bucket):
    make_dataset(bucket, "wide", hooks={HOOK: 256}, rows=512, shards=4)
    server = ActivationServer(bucket, ServerConfig(window_mib=1))  # room for two batches
    stream = StreamSpec("wide", (HOOK,), batch_size=512, seed=0, shards_side_by_side=4)
    server.expect(stream, "one that never comes", 0, 10)
    hook = HookStats(name=HOOK, d=256, scale=1.0, mean=pack_vector(np.zeros(256)), norm_limit=None)
    assignment = replace(assign(batch_size=512, tokens=512 * 10), stream=stream, inputs=(hook,))
    trainer = make(GroupTrainer, bucket, assignment)
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(train, trainer, server.address)
            deadline = time.monotonic() + 30
            while progress(trainer).step < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.2)
            assert not running.done()
            trainer.stop()
            assert running.result(timeout=10) == 2
    finally:
        server.stop()
    assert checkpoint.steps_of(bucket, SaeLayout(assignment.root)) == [2]


def test_running_a_finished_sae_again_returns_at_once_without_a_server(bucket, server):
    assignment = assign()
    run(GroupTrainer, bucket, assignment, server)
    folder = Path(bucket.url) / assignment.root
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert train(make(GroupTrainer, bucket, assignment), "tcp://127.0.0.1:9") == STEPS
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_a_last_checkpoint_without_an_export_is_exported_without_a_server(bucket, server):
    """The process died between the two."""
    assignment = assign()
    run(GroupTrainer, bucket, assignment, server)
    layout = SaeLayout(assignment.root)
    exported = bucket.read(layout.weights)
    for path in (layout.config, layout.weights, layout.provenance):
        bucket.remove(path)
    assert train(make(GroupTrainer, bucket, assignment), "tcp://127.0.0.1:9") == STEPS
    assert bucket.read(layout.weights) == exported and bucket.exists(layout.config)


def test_two_trainers_of_one_stream_do_not_disturb_each_other(bucket, server):
    alone, first = assign("alone"), assign("first")
    run(GroupTrainer, bucket, alone, server)
    server.expect(STREAM, "sae-late", 0, STEPS)  # the window is kept for another, which then comes too
    late = assign("late", sparsity=0.2)
    trainers = [make(GroupTrainer, bucket, a) for a in (first, late)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda t: train(t, server.address), trainers)) == [STEPS, STEPS]
    assert weights(bucket, first) == weights(bucket, alone) != weights(bucket, late)


class Looks(GroupTrainer):
    """Keeps what its SAE sees."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        (member,), self.seen = self.trainers, []
        take = member.take
        member.take = lambda k, batch: (self.seen.append([None if part is None else part.clone() for part in batch]), take(k, batch))


def test_float32_rows_reach_the_sae_unchanged(bucket):
    make_dataset(bucket, "exact", dtype="float32", rows=16, shards=1)
    server = ActivationServer(bucket, ServerConfig(window_mib=1))
    trainer = make(Looks, bucket, replace(assign(tokens=16), stream=replace(STREAM, dataset="exact")))
    try:
        train(trainer, server.address)
    finally:
        server.stop()
    ((x, y),) = trainer.seen
    assert y is None and x.shape == (16, 8) and x[:, 0].tolist() == list(range(16))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(x[:, 1:], torch.randn(16, 8, generator=generator)[:, 1:])


IN, OUT = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
LATER = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
SCALES = {IN: 3.0, OUT: 0.25, LATER[0]: 11.0, LATER[1]: 2.0}
WIDTHS = {IN: 8, OUT: 5, LATER[0]: 6, LATER[1]: 4}


@pytest.mark.parametrize(
    ("architecture", "inputs", "targets"),
    [
        ("transcoder", (IN,), (OUT,)),
        ("skip_transcoder", (IN,), (OUT,)),
        ("crosscoder", (IN, LATER[0]), ()),
        ("clt", (IN, LATER[0]), (OUT, LATER[1])),
        ("per_layer_transcoder", (IN, LATER[0]), (OUT, LATER[1])),
    ],
)
@pytest.mark.parametrize("normalization", ["scale", "sqrt_d", "none"])
def test_hooks_stand_side_by_side_each_in_its_own_units(bucket, architecture, inputs, targets, normalization):
    """What is stored is raw / scale. The finished SAE takes and gives raw activations, and rebuilds the targets' means at the start."""
    make_dataset(bucket, "several", hooks=WIDTHS, dtype="float32", rows=16, shards=1)
    config = assign(
        tokens=16, architecture=architecture, normalization=normalization, learning_rate=1e-30, initial_decoder_bias="mean",
        lr_decay_fraction=0.0, activation="topk", sparsity=4,
    ).config  # fmt: skip
    stats = {h: HookStats(name=h, d=d, scale=SCALES[h], mean=pack_vector(np.arange(d) + 1.0), norm_limit=None) for h, d in WIDTHS.items()}
    assignment = replace(
        assign(), inputs=tuple(stats[h] for h in inputs), targets=tuple(stats[h] for h in targets), config=config,
        stream=replace(STREAM, dataset="several", hooks=inputs + targets, shards_side_by_side=1),
    )  # fmt: skip
    server, trainer = ActivationServer(bucket, ServerConfig(window_mib=1)), make(Looks, bucket, assignment)
    try:
        train(trainer, server.address)
    finally:
        server.stop()
    stored, generator = {}, torch.Generator().manual_seed(0)
    for hook, d in WIDTHS.items():
        stored[hook] = torch.randn(16, d, generator=generator)
        stored[hook][:, 0] = torch.arange(16)
    factor = {"scale": lambda h: 1.0, "sqrt_d": lambda h: WIDTHS[h] ** 0.5, "none": lambda h: SCALES[h]}[normalization]
    ((x, y),) = trainer.seen
    for found, hooks in ((x, inputs), (y, targets)):
        if hooks:
            order = found[:, 0].argsort()
            np.testing.assert_allclose(found[order], torch.cat([stored[h] * factor(h) for h in hooks], dim=1), rtol=1e-6)
    finished = load_sae(f"{bucket.url}/{assignment.root}")
    means = np.concatenate([np.arange(WIDTHS[h]) + 1.0 for h in targets or inputs])
    np.testing.assert_allclose(finished.b_dec, means, rtol=1e-5)
    trained = checkpoint.load_sae(bucket, SaeLayout(assignment.root), 1)[0].requires_grad_(False)
    raw = torch.cat([stored[h] * SCALES[h] for h in inputs], dim=1)
    seen = torch.cat([stored[h] * factor(h) for h in inputs], dim=1)
    back = torch.cat([torch.full((WIDTHS[h],), SCALES[h] / factor(h)) for h in targets or inputs])
    np.testing.assert_allclose(finished(raw), trained(seen) * back, rtol=1e-4, atol=1e-4)


def test_another_configuration_at_the_same_place_is_a_conflict_and_harms_nothing(bucket, server):
    assignment = assign()
    run(StopsAt, bucket, assignment, server, 20)
    with pytest.raises(Conflict, match="learning_rate = 0.003, and this run asks for 0.5"):
        train(make(GroupTrainer, bucket, assign(learning_rate=0.5)), server.address)
    assert run(GroupTrainer, bucket, assignment, server) == STEPS


def test_no_server_at_the_address_is_server_gone(bucket, monkeypatch):
    monkeypatch.setattr(run_module, "StreamClient", lambda *arguments: client.StreamClient(*arguments, connect_seconds=0.3))
    with pytest.raises(ServerGone, match="tcp://127.0.0.1:9"):
        train(make(GroupTrainer, bucket, assign()), "tcp://127.0.0.1:9")


def test_a_server_that_goes_away_is_server_gone_and_another_serves_the_rest(bucket, server, monkeypatch):
    monkeypatch.setattr(client, "SILENCE_SECONDS", 1.0)
    whole, assignment = assign("whole"), assign("moved")
    run(GroupTrainer, bucket, whole, server)

    class LosesServer(GroupTrainer):
        def _step(self, index, rows) -> None:
            super()._step(index, rows)
            if index + 1 == 20:
                server.stop()

    with pytest.raises(ServerGone, match="silent"):
        run(LosesServer, bucket, assignment, server)
    other = ActivationServer(bucket, ServerConfig(window_mib=1))
    try:
        assert run(GroupTrainer, bucket, assignment, other) == STEPS
    finally:
        other.stop()
    assert weights(bucket, assignment) == weights(bucket, whole)


@pytest.mark.parametrize(
    ("changes", "kind"), [({"hooks": ("blocks.9.hook_resid_post",)}, MissingObject), ({"batch_size": 10_000}, InputError)]
)
def test_a_stream_that_cannot_be_is_the_servers_own_error(bucket, server, changes, kind):
    with pytest.raises(kind) as caught:
        run(GroupTrainer, bucket, replace(assign(), stream=replace(STREAM, **changes)), server)
    assert isinstance(caught.value, ScopemillError) and str(caught.value)


def test_a_damaged_shard_is_told_to_the_trainer_and_its_checkpoints_stay(bucket, server):
    assignment = assign()
    run(StopsAt, bucket, assignment, server, 20)
    server.stop()
    shutil.rmtree(Path(bucket.url) / "activations/synthetic/shards/00002.zarr")
    other = ActivationServer(bucket, ServerConfig(window_mib=1))
    try:
        with pytest.raises(MissingObject, match="00002"):
            run(GroupTrainer, bucket, assignment, other)
    finally:
        other.stop()
    assert checkpoint.steps_of(bucket, SaeLayout(assignment.root))[-1] >= 20


def actor(bucket: Bucket) -> Trainer:
    return Trainer(bucket.url, threads=1, gpu=False)


def test_one_process_trains_one_sae_after_another_to_the_bits_of_a_process_each(bucket, server):
    alone, first, second = assign("alone"), assign("first"), assign("second", sparsity=0.2)
    run(GroupTrainer, bucket, alone, server)
    trainer = actor(bucket)
    assert trainer.progress() == []
    for assignment in (first, second):
        assert train(trainer, [assignment], server.address) == STEPS
        told = progress(trainer, steps=(8, 16))
        assert (told.name, told.step, told.last.step, sorted(told.at)) == (assignment.name, STEPS, STEPS, [8, 16])
        shown = {s.labels["sae"] for metric in metrics.OF_TRAINER for family in metric.collect() for s in family.samples}
        assert assignment.name in shown, "how it ended can still be scraped"
    assert first.name not in shown, "of the one before nothing is left"
    assert weights(bucket, first) == weights(bucket, alone) != weights(bucket, second)


def test_who_leaves_is_one_sae_and_the_next_one_is_trained_whole(bucket, server):
    trainer, begin = actor(bucket), SaeTrainer.begin
    trainer.leave("sae-a")  # not begun: nobody is meant

    def left_at_once(self):
        trainer.leave("sae-b")  # another than the one in work
        trainer.leave("sae-a")
        begin(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SaeTrainer, "begin", left_at_once)
        assert train(trainer, [assign("a")], server.address) <= 1
        trainer.leave("sae-a")  # has returned already
        assert train(trainer, [assign("c")], server.address) == STEPS


def test_a_process_that_drains_begins_nothing_more(bucket, server):
    trainer = actor(bucket)
    trainer.stop()
    assert train(trainer, [assign("a")], server.address) <= 1
    assert train(trainer, [assign("c")], server.address) <= 1
