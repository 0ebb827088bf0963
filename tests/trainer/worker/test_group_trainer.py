"""SAEs that train on one copy of a stream: each to the bits that it gets alone, whatever becomes of the others."""

from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from support.assignments import STEPS, STREAM, assign, rows, train, weights
from support.synthetic import make_dataset

from scopemill.activation_server.config import ServerConfig
from scopemill.activation_server.server import ActivationServer
from scopemill.proto.errors import Conflict, NotFinite, ScopemillError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.group_trainer import GroupTrainer
from scopemill.trainer.worker.sae_trainer import SaeTrainer

# Whatever may differ between SAEs of one stream.
KINDS = {
    "jumprelu": {},
    "wide": {"width": 40, "sparsity": 0.2},
    "standard": {"architecture": "standard", "normalization": "sqrt_d", "checkpoint_every": 7},
    "topk": {"architecture": "topk", "sparsity": 4, "normalization": "layer_norm", "initial_decoder_bias": "zero"},
    "resampled": {"normalization": "none", "resample_every": 9, "seed": 5, "initial_decoder_bias": "mean"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A bucket with every kind trained alone, and a server."""
    bucket = Bucket(str(tmp_path_factory.mktemp("group") / "bucket"))
    make_dataset(bucket, dtype="bfloat16")
    server = ActivationServer(bucket, ServerConfig(window_mib=1))
    for kind in KINDS:
        assert train(GroupTrainer(bucket, [of(kind, "alone")]), server.address) == STEPS
    yield bucket, server
    server.stop()


def of(kind: str, place: str, **changes) -> Assignment:
    return assign(f"{place}-{kind}", **KINDS[kind] | changes)


def group(place: str) -> list[Assignment]:
    return [of(kind, place) for kind in KINDS]


def same_as_alone(bucket: Bucket, place: str, *kinds: str, but_history: str = "") -> None:
    """Weights, the optimiser's state, what is exported, and the history, which has one row more of an SAE that was stopped."""
    for kind in kinds or KINDS:
        one, alone = of(kind, place), of(kind, "alone")
        assert weights(bucket, one) == weights(bucket, alone), kind
        here, there = SaeLayout(one.root), SaeLayout(alone.root)
        assert bucket.read(here.checkpoint(STEPS).optimizer) == bucket.read(there.checkpoint(STEPS).optimizer)
        assert bucket.read(here.weights) == bucket.read(there.weights)
        if kind != but_history:
            assert rows(bucket, one) == rows(bucket, alone)


def served() -> float:
    return REGISTRY.get_sample_value("scopemill_server_bytes_served_total", {"stream": STREAM.label}) or 0.0


def test_a_group_ends_with_the_bits_of_runs_alone_and_its_batches_come_once(world):
    bucket, server = world
    before = served()
    outcomes = GroupTrainer(bucket, group("together")).run(server.address)
    assert outcomes == {assignment.name: STEPS for assignment in group("together")}
    assert served() - before == STEPS * 16 * 8 * 2
    same_as_alone(bucket, "together")
    assert GroupTrainer(bucket, group("together")).run("tcp://127.0.0.1:9") == outcomes, "what is finished needs no server"


class Dies(GroupTrainer):
    """After a step of some of its SAEs, in the middle of a batch."""

    steps = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for member in self.trainers:
            member.take = self._mortal(member.take)

    def _mortal(self, take):
        def counted(*arguments):
            if self.steps == 0:
                raise KeyboardInterrupt
            self.steps -= 1
            take(*arguments)

        return counted


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=st.lists(st.integers(1, 5 * STEPS), max_size=2))
def test_killed_at_any_step_the_group_goes_on_at_the_earliest_checkpoint_and_each_sees_every_batch_once(world, lives, tmp_path_factory):
    bucket, server = world
    place = tmp_path_factory.mktemp("killed").name
    seen: dict[str, dict[int, bytes]] = defaultdict(dict)
    step = Loop.step

    def noted(loop: Loop, x, y=None):
        known = seen[repr(loop.config)].setdefault(loop.step_number, x.numpy().tobytes())
        assert known == x.numpy().tobytes(), "batch k is the same in every life"
        step(loop, x, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "step", noted)
        for life in lives:
            dies = Dies(bucket, group(place))
            dies.steps = life
            try:
                dies.run(server.address)
            except KeyboardInterrupt:
                pass
        GroupTrainer(bucket, group(place)).run(server.address)
    assert [sorted(batches) for batches in seen.values()] == [list(range(STEPS))] * len(KINDS)
    same_as_alone(bucket, place)


def test_who_leaves_is_checkpointed_and_goes_on_later_and_the_others_do_not_notice(world):
    bucket, server = world

    class Loses(GroupTrainer):
        def _step(self, index, rows) -> None:
            super()._step(index, rows)
            if index == 20:
                self.leave(of("wide", "left").name)
                self.leave("nobody")

    outcomes = Loses(bucket, group("left")).run(server.address)
    assert outcomes.pop(of("wide", "left").name) == 21 and set(outcomes.values()) == {STEPS}
    layout = SaeLayout(of("wide", "left").root)
    assert checkpoint.steps_of(bucket, layout)[-1] == 21 and not bucket.exists(layout.config)
    assert set(GroupTrainer(bucket, group("left")).run(server.address).values()) == {STEPS}, "those that are finished let it go on alone"
    same_as_alone(bucket, "left", but_history="wide")


def test_what_goes_wrong_with_one_is_its_own(world):
    bucket, server = world
    train(GroupTrainer(bucket, [of("jumprelu", "wrong", tokens=16)]), server.address)
    assignments = [*group("wrong"), assign("wrong-nan", learning_rate=1e38)]

    class Breaks(GroupTrainer):
        def _step(self, index, rows) -> None:
            if index == 12:
                self.trainers[1]._loop.optimizer = None
            super()._step(index, rows)

    outcomes = Breaks(bucket, assignments).run(server.address)
    conflict, broken = (outcomes.pop(of(kind, "wrong").name) for kind in ("jumprelu", "wide"))
    diverged = outcomes.pop(assignments[-1].name)
    assert isinstance(conflict, Conflict) and "trained with tokens = 16" in str(conflict)
    assert type(broken) is ScopemillError and str(broken).startswith("AttributeError: ")
    assert set(outcomes.values()) == {STEPS}
    assert isinstance(diverged, NotFinite) and not checkpoint.steps_of(bucket, SaeLayout(assignments[-1].root))
    same_as_alone(bucket, "wrong", *list(KINDS)[2:])


def test_an_error_of_the_stream_is_told_of_each_that_still_trained(world):
    bucket, _ = world
    short = of("wide", "gone", tokens=16 * 8)

    class LosesServer(GroupTrainer):
        def _step(self, index, rows) -> None:
            super()._step(index, rows)
            if index == 20:
                self._client._socket.close()

    server = ActivationServer(bucket, ServerConfig(window_mib=1))
    try:
        outcomes = LosesServer(bucket, [of("jumprelu", "gone"), short]).run(server.address)
    finally:
        server.stop()
    assert outcomes[short.name] == 8 and bucket.exists(SaeLayout(short.root).config), "a shorter one had ended by then"
    assert isinstance(outcomes[of("jumprelu", "gone").name], ScopemillError)


def test_one_that_is_shorter_ends_where_batches_over_its_end_are_lost(world):
    bucket, _ = world
    member = SaeTrainer(bucket, of("jumprelu", "skipped"), GroupTrainer(bucket, group("x"))._device, lambda: 0.0)
    member.begin()
    member.take(STEPS + 3, (None, None))
    assert member.done
    member.end()
    assert member.outcome == STEPS
