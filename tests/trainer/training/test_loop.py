"""The training loop: it recovers a known dictionary, resumes bit for bit, and its history says what happened."""

import itertools

import numpy as np
import pytest
import torch
from support.sae_reference import CASES, B, Case, Reference, quick
from support.sparse_world import SparseWorld

from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Port, Shape, Wiring
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.training.schedules import learning_rate, sparsity_factor

LAYOUT = SaeLayout("saes/m/blocks.0.hook_resid_post/width_64/a/0")
STILL = 1e-30  # a learning rate that moves no float32 weight
TIMES = {"steps_per_second", "waiting_share"}


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are done sooner by one thread than by several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_config(**changes) -> SaeConfig:
    return quick(**dict(width=64, sparsity=0.01, batch_size=256, log_every=10) | changes)


def make_loop(config: SaeConfig, d: int, mean: torch.Tensor | None = None) -> Loop:
    return Loop(initial_sae(config, Shape.square(d), torch.zeros(d) if mean is None else mean), config, History())


def known(history: History) -> list[dict]:
    return [{k: v for k, v in vars(row).items() if k not in TIMES} for row in history.rows]


WORLD = SparseWorld(d=32, directions=64, active=2.0)


@pytest.mark.parametrize(("architecture", "sparsity", "l0"), [("jumprelu", 0.02, (1.5, 3)), ("topk", 3, (1.5, 3))])
def test_training_recovers_a_sparse_dictionary(architecture, sparsity, l0):
    config = make_config(
        architecture=architecture, sparsity=sparsity, tokens=256 * 400, batch_size=256, learning_rate=2e-2, lr_warmup_steps=20,
        sparsity_warmup_steps=100, initial_threshold=0.1, bandwidth=0.1, initial_decoder_bias="zero", dead_after_tokens=10_000,
    )  # fmt: skip
    loop = make_loop(config, 32)
    assert WORLD.recovered(loop.sae.W_dec.detach()) < 0.6
    while not loop.done:
        loop.step(WORLD.batch(loop.step_number, 256))
    last = loop.history.rows[-1]
    assert WORLD.recovered(loop.sae.W_dec.detach()) > 0.92
    assert last.fvu < 0.15 and l0[0] < last.l0 < l0[1], (last.fvu, last.l0)


def batch_of(case: Case, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + k)
    x = torch.randn(B, case.shape.d_in, generator=generator)
    return x, x if case.shape.autoencoder else torch.randn(B, case.shape.d_out, generator=generator)


def test_batches_that_were_skipped_count_for_the_schedules_and_not_as_steps(bucket: Bucket):
    case = CASES["jumprelu l0"]
    config = case.config.model_copy(update=dict(tokens=24 * B, batch_size=B, lr_warmup_steps=12, lr_decay_fraction=0.5, log_every=3))
    whole, stopped = (Loop(case.sae(torch.float32), config, History()) for _ in range(2))
    wiring = Wiring((Port("blocks.0.hook_resid_pre", case.shape.d_in, 1.0),))
    seen = [0, 1, 2, 3, 10, 11, 12, 13, 22, 23]
    for k in seen:
        whole.skip_to(k)
        whole.step(*batch_of(case, k))
    assert whole.done and whole.skipped == 14 and whole.optimizer.updates == len(seen)
    assert [(row.step, row.tokens) for row in whole.history.rows] == [(3, 3 * B), (12, 6 * B), (24, 10 * B)]
    assert [row.learning_rate for row in whole.history.rows] == [learning_rate(config, k) for k in (2, 11, 23)]
    for k in seen[:5]:
        stopped.skip_to(k)
        stopped.step(*batch_of(case, k))
    checkpoint.save(bucket, LAYOUT, wiring, stopped)
    resumed = checkpoint.load_loop(bucket, LAYOUT, 11, config)
    for k in seen[5:]:
        resumed.skip_to(k)
        resumed.step(*batch_of(case, k))
    assert resumed.skipped == 14 and known(resumed.history)[-1:] == known(whole.history)[-1:]
    for name, tensor in (whole.sae.state_dict() | whole.state()).items():
        assert torch.equal((resumed.sae.state_dict() | resumed.state())[name], tensor), name


OTHER_ADAM = Case("jumprelu", options={"adam_beta1": 0.9, "weight_decay": 0.1, "tied_weights": True})


@pytest.mark.parametrize("case", [*CASES.values(), OTHER_ADAM], ids=[*CASES, "first moments, decay and one matrix"])
def test_a_run_resumed_from_a_checkpoint_ends_bit_for_bit_like_one_that_was_not_interrupted(case: Case, bucket: Bucket):
    steps, dead = (
        24,
        {"dead_after_tokens": 5 * B, "resample_every": 8 if case.architecture in ("standard", "jumprelu") else None, "resample_until": 1.0},
    )
    config = case.config.model_copy(
        update=dict(tokens=steps * B, batch_size=B, lr_warmup_steps=5, sparsity_warmup_steps=9, log_every=3) | dead
    )
    wiring = Wiring(
        tuple(Port(f"blocks.{i}.hook_resid_pre", d, 1.0) for i, d in enumerate(case.shape.inputs)),
        () if case.shape.autoencoder else tuple(Port(f"blocks.{i}.hook_resid_post", d, 1.0) for i, d in enumerate(case.shape.outputs)),
    )
    whole, first = (Loop(case.sae(torch.float32), config, History()) for _ in range(2))
    for loop in (whole, first):
        silence(loop.sae, 5)
    while not whole.done:
        whole.step(*batch_of(case, whole.step_number))

    for k in range(12):
        first.step(*batch_of(case, k))
    first.history.save(bucket, LAYOUT.history)
    checkpoint.save(bucket, LAYOUT, wiring, first)
    for k in range(12, 15):  # work that the crash loses
        first.step(*batch_of(case, k))

    second = checkpoint.load_loop(bucket, LAYOUT, 12, config)
    while not second.done:
        second.step(*batch_of(case, second.step_number))

    found, lost = second.sae.state_dict(), first.sae.state_dict()
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(found[name], value), name
    assert not all(torch.equal(lost[name], value) for name, value in found.items())
    for name, tensor in whole.state().items():
        assert torch.equal(second.state()[name], tensor), name
    assert known(second.history) == known(whole.history)
    assert any(row.dead_latents for row in whole.history.rows), "the dead counters carried something"


def silence(sae, count: int) -> None:
    """The first latents do not fire unless they are trained to."""
    with torch.no_grad():
        (sae.activation.b_gate if sae.b_enc is None else sae.b_enc)[:count] = -20.0


def test_a_history_is_read_back_up_to_the_step_of_the_checkpoint(bucket: Bucket):
    loop = make_loop(make_config(tokens=256 * 40), 32)
    while not loop.done:
        loop.step(WORLD.batch(loop.step_number, 256))
    assert History.load(bucket, LAYOUT.history, 40).rows == []
    loop.history.save(bucket, LAYOUT.history)
    assert History.load(bucket, LAYOUT.history, 40).rows == loop.history.rows
    assert [row.step for row in History.load(bucket, LAYOUT.history, 29).rows] == [10, 20]


@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_the_historys_fvu_is_a_two_pass_computation_even_where_the_mean_is_huge(architecture):
    d, steps, generator = 24, 12, torch.Generator().manual_seed(3)
    mean = 1e4 * torch.randn(d, generator=generator)
    # Batches of different spread, so that a mean of per-batch ratios is another number.
    batches = [mean + (1 + k % 3) * torch.randn(200, d, generator=generator) for k in range(steps)]
    config = make_config(
        architecture=architecture, tokens=200 * steps, batch_size=200, log_every=6, learning_rate=STILL, initial_threshold=0.8
    )
    loop = make_loop(config, d, mean)
    for x in batches:
        loop.step(x)
    sae = make_loop(config, d, mean).sae
    w_enc, w_dec, b_dec = (p.detach().double().numpy() for p in (sae.W_enc, sae.W_dec, sae.b_dec))
    assert [row.step for row in loop.history.rows] == [6, 12]
    for row, part in zip(loop.history.rows, (batches[:6], batches[6:]), strict=True):
        x = torch.cat(part).double().numpy()
        z = (x - b_dec) @ w_enc.T
        f = np.where(z > (0.8 if architecture == "jumprelu" else 0.0), z, 0.0)
        error = ((x - (f @ w_dec + b_dec)) ** 2).sum()
        expected = error / ((x - x.mean(axis=0)) ** 2).sum()
        assert row.fvu == pytest.approx(expected, rel=1e-4)
        assert row.reconstruction == pytest.approx(error / len(x), rel=1e-4)
        assert row.l0 == pytest.approx((f > 0).sum(axis=1).mean(), rel=1e-3)
        assert row.fvu != pytest.approx(error / (len(x) * d * x.var()), rel=0.5), "a variance around one scalar mean"


def test_a_row_of_the_history_says_the_means_and_the_schedule_of_its_steps():
    config = make_config(tokens=256 * 25, log_every=10, lr_warmup_steps=20, sparsity_warmup_steps=15, sparsity=0.5)
    loop, world = make_loop(config, 32), WORLD
    values = []
    for k in range(25):
        x = world.batch(k, 256)
        losses = loop.objective.losses(x, x, loop.dead)
        values.append((losses.total(0.5 * sparsity_factor(config, k)).item(), losses.reconstruction.item(), losses.sparsity.item()))
        loop.step(x)
    assert [(row.step, row.tokens) for row in loop.history.rows] == [(10, 2560), (20, 5120), (25, 6400)]
    for row, (a, b) in zip(loop.history.rows, [(0, 10), (10, 20), (20, 25)], strict=True):
        loss, reconstruction, sparsity = np.mean(values[a:b], axis=0)
        assert (row.loss, row.reconstruction, row.sparsity) == pytest.approx((loss, reconstruction, sparsity), rel=1e-6)
        assert row.l0 == pytest.approx(row.sparsity, rel=1e-6), "JumpReLU's penalty is L0 itself"
        assert (row.learning_rate, row.sparsity_factor) == (learning_rate(config, b - 1), sparsity_factor(config, b - 1))
        assert row.sparsity_coefficient == 0.5 and row.steps_per_second > 0 and row.waiting_share == 0


def test_the_share_of_waiting_is_that_of_the_interval():
    clock = itertools.count(0.0, 100.0)
    config = make_config(tokens=256 * 4, log_every=2)
    loop = Loop(make_loop(config, 32).sae, config, History(), lambda: next(clock))
    for k in range(4):
        loop.step(WORLD.batch(k, 256))
    assert [row.waiting_share for row in loop.history.rows] == [1.0, 1.0], "never above one, whatever the clocks say"


@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_the_dead_counter_counts_tokens_since_a_latent_last_fired(architecture):
    """Latent 0 never fires, latent 1 on the second batch alone, latent 2 always."""
    config = make_config(
        architecture=architecture, width=3, batch_size=4, tokens=4 * 5, log_every=1, learning_rate=STILL, dead_after_tokens=12,
        initial_decoder_bias="zero", initial_threshold=0.1,
    )  # fmt: skip
    loop = make_loop(config, 3)
    with torch.no_grad():
        loop.sae.W_enc.copy_(torch.eye(3))
    seen = []
    for k in range(5):
        x = torch.tensor([[-1.0, 1.0 if k == 1 else -1.0, 1.0]] * 4)
        x[1:, 1] = -1.0  # one row of the batch is enough
        loop.step(x)
        seen.append(loop.tokens_since_fired.tolist())
    assert seen == [[4, 4, 0], [8, 0, 0], [12, 4, 0], [16, 8, 0], [20, 12, 0]]
    assert [row.dead_latents for row in loop.history.rows] == [0, 0, 1, 1, 2]


def test_the_learning_rate_and_the_sparsity_of_a_step_are_those_of_its_number_from_zero():
    config = make_config(tokens=256 * 20, lr_warmup_steps=10, sparsity_warmup_steps=0, adam_epsilon=1e-30, architecture="standard")
    loop = make_loop(config, 32)
    before = loop.sae.b_dec.detach().clone()
    loop.step(WORLD.batch(0, 256))
    moved = (loop.sae.b_dec.detach() - before).abs()
    np.testing.assert_allclose(moved.numpy(), 0.1 * config.learning_rate, rtol=1e-4)  # Adam's first update is the rate itself


PER_ROW = [name for name, case in CASES.items() if not case.k and not {"sparsity", "frequency_limit"} & case.options.keys()]


def one_update(case: Case, **changes) -> Loop:
    """One step at the full sparsity coefficient, with Adam's second moments the squares of the gradient."""
    fixed = dict(tokens=B, batch_size=B, lr_warmup_steps=0, lr_decay_fraction=0.0, sparsity_warmup_steps=0, adam_beta2=0.0)
    loop = Loop(case.sae(torch.float32), case.config.model_copy(update=fixed | changes), History())
    loop.step(*(rows.float() for rows in case.rows))
    return loop


@pytest.mark.parametrize("name", PER_ROW)
@pytest.mark.parametrize("parts", [2, 6])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(name, parts):
    whole, cut = one_update(CASES[name]), one_update(CASES[name], accumulate=parts)
    for parameter, v in whole.optimizer.second_moments.items():
        size = v.max().item()
        np.testing.assert_allclose(
            cut.optimizer.second_moments[parameter].numpy(), v.numpy(), rtol=1e-3, atol=1e-5 * size, err_msg=parameter
        )
        assert size > 0
    assert torch.equal(whole.tokens_since_fired, cut.tokens_since_fired)
    one, other = known(whole.history)[0], known(cut.history)[0]
    assert one == pytest.approx(other, rel=1e-5)


def test_a_latent_that_fires_in_one_part_of_a_batch_alone_is_not_dead():
    config = make_config(
        width=3, batch_size=4, tokens=8, accumulate=4, learning_rate=STILL, initial_threshold=0.1, initial_decoder_bias="zero"
    )
    loop = make_loop(config, 3)
    with torch.no_grad():
        loop.sae.W_enc.copy_(torch.eye(3))
    loop.step(torch.tensor([[-1.0, 1, -1], [-1, -1, -1], [-1, -1, -1], [1, -1, -1]]))
    assert loop.tokens_since_fired.tolist() == [0, 0, 4]


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_products_stay_near_float32_and_weights_in_float32(name):
    exact, rough = one_update(CASES[name]), one_update(CASES[name], precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in (*rough.sae.parameters(), *rough.optimizer.second_moments.values()))
    assert exact.history.rows[0].loss == pytest.approx(rough.history.rows[0].loss, rel=0.03)
    assert exact.history.rows[0].l0 == pytest.approx(rough.history.rows[0].l0, rel=0.02)
    changed = 0
    for parameter, v in exact.optimizer.second_moments.items():
        one, other = v.sqrt().double(), rough.optimizer.second_moments[parameter].sqrt().double()
        changed += not torch.equal(one, other)
        if parameter != "activation.threshold":  # its gradient is a sum over a few rows, which rounding moves in and out of the band
            assert (one - other).norm() < 0.15 * one.norm(), parameter
    assert changed, "the products were in bfloat16 indeed"


@pytest.mark.parametrize("name", ["jumprelu layer norm", "topk layer norm"])
def test_the_historys_fvu_under_layer_norm_is_that_of_normalised_rows(name):
    case = CASES[name]
    loop = Loop(case.sae(torch.float32), case.config.model_copy(update=dict(tokens=B, batch_size=B)), History())
    loop.step(7.0 * case.rows[0].float() + 1.0)
    assert loop.history.rows[0].fvu == pytest.approx(Reference(case, case.sae()).fvu, rel=1e-3)


@pytest.mark.parametrize("name", [n for n in CASES if "layer norm" not in n])
def test_the_historys_numbers_are_those_of_the_published_formulas(name):
    row, reference = one_update(CASES[name]).history.rows[0], Reference(CASES[name], CASES[name].sae())
    assert row.fvu == pytest.approx(reference.fvu, rel=1e-4) and row.l0 == pytest.approx(reference.on.sum(axis=1).mean(), rel=1e-6)
    assert row.reconstruction == pytest.approx((reference.error**2).sum(axis=1).mean(), rel=1e-4)
    assert row.sparsity == pytest.approx(reference.penalty(reference.p, reference.f, reference.on.mean(axis=0)), rel=1e-4)
