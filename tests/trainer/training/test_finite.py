"""Numbers that are not finite end one SAE's training, with a name, and leave its last checkpoint as it was."""

import math

import pytest
import torch
from support import sparse_kinds
from support.assignments import STEPS, assign
from support.wide import in_processes

from scopemill import train_sae
from scopemill.proto.errors import NotFinite
from scopemill.proto.layout import SaeLayout
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.worker.group_trainer import GroupTrainer


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("word", "activation"), sparse_kinds.KINDS)
def test_a_batch_with_a_value_that_is_not_finite_is_refused_by_every_kind_on_either_side(word, activation, sparse):
    config, sae = sparse_kinds.make(word, activation)
    shape, rows = sparse_kinds.shape_of(word), sparse_kinds.B
    loop = Loop(sae, config, History())
    loop.step(torch.randn(rows, shape.d_in), None if shape.autoencoder else torch.randn(rows, shape.d_out))
    loop.sparse = sparse and loop._backend is not None
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    for side in range(1 if shape.autoencoder else 2):
        for value in (math.nan, math.inf, -math.inf):
            sides = [torch.randn(rows, shape.d_in), torch.randn(rows, shape.d_out)]
            sides[side][5, 3] = value
            with pytest.raises(
                NotFinite, match=rf"^step 2: 1 rows of its batch \(the first is row 5 of the {('inputs', 'targets')[side]}\)"
            ):
                loop.step(sides[0], None if shape.autoencoder else sides[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


def test_a_rate_that_is_far_too_high_is_named():
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotFinite, match=r"^step \d+: the loss is (inf|nan), and its batch is finite: training diverged\. .*1e\+30"):
        train_sae(x, width=32, sparsity=4, steps=20, learning_rate=1e30, lr_warmup_steps=0)


def test_weights_that_no_loss_shows_are_never_handed_out(monkeypatch):
    """The last update has no step after it; a latent that never fires is in no loss."""
    step = Loop.step

    def breaks(self, *batch):
        step(self, *batch)
        if self.done:
            self.sae.W_enc.data[3, 1] = math.inf

    monkeypatch.setattr(Loop, "step", breaks)
    with pytest.raises(NotFinite, match="^after step 2: W_enc holds a NaN or an infinity"):
        train_sae(torch.randn(512, 16), width=32, sparsity=4, steps=2)


def poison(monkeypatch, at: int, tensor: str | None = None) -> None:
    """Batch ``at`` holds a NaN; or after it, one tensor of the state does."""
    step = Loop.step

    def poisoned(self, x, y=None):
        number = self.step_number
        if tensor is None and number == at:
            x = x.clone()
            x[2, 1] = math.nan
        step(self, x, y)
        if tensor and number == at:
            (self.sae.state_dict() | self.state())[tensor][-1, 0] = math.nan

    monkeypatch.setattr(Loop, "step", poisoned)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("tensor", [None, "W_dec", "second_moment.W_enc"])
def test_no_checkpoint_follows_and_the_newest_one_stays_whole(bucket, server, monkeypatch, tensor, ranks):
    """Three SAEs of a group, or one over two processes; the poison strikes just before the second checkpoint."""
    one = assign("poisoned", architecture="standard")
    poison(monkeypatch, 31, tensor)
    if ranks == 1:
        other = assign("late", tokens=16 * 31)
        outcomes = GroupTrainer(bucket, [one, other]).run(server.address)
        assert outcomes.pop(other.name) == 31, "the others of the group train on"
    else:
        outcomes, errors = in_processes(bucket, one, server.address, ranks)
        outcomes |= {str(error): error for error in errors if isinstance(error, NotFinite)}
    assert any(isinstance(outcome, NotFinite) for outcome in outcomes.values()), outcomes
    assert not any(outcome == STEPS for outcome in outcomes.values())
    layout = SaeLayout(one.root)
    assert checkpoint.steps_of(bucket, layout) == [16] and not bucket.exists(layout.config)
    monkeypatch.undo()
    assert checkpoint.load_loop(bucket, layout, 16, one.config).step_number == 16
