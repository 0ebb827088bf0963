"""JumpReLU's thresholds: their pseudo-gradients against slopes of the loss itself, and what moves them besides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.sae_reference import CASES, ONE, Reference, quick

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.calibration import calibrate
from scopemill.trainer.sae.objective import Losses
from scopemill.trainer.sae.registry import initial_sae, objective_for
from scopemill.trainer.training.optimizer import Optimizer

CASE = CASES["jumprelu l0"]
BANDWIDTH, COEFFICIENT = CASE.config.bandwidth, CASE.config.coefficient


def losses_of(sae: Sae, rows: torch.Tensor, config: SaeConfig = CASE.config) -> Losses:
    return objective_for(sae, config).losses(rows, rows, torch.zeros(sae.width, dtype=torch.bool))


def total_of(sae: Sae, rows: torch.Tensor, config: SaeConfig = CASE.config) -> torch.Tensor:
    return losses_of(sae, rows, config).total(config.coefficient)


def threshold_gradient(sae: Sae, loss: torch.Tensor) -> np.ndarray:
    return torch.autograd.grad(loss, sae.activation.threshold, retain_graph=True)[0].numpy()


def moved(i: int, by: float) -> Sae:
    sae = CASE.sae()
    with torch.no_grad():
        sae.activation.threshold[i] += by
    return sae


def test_the_thresholds_gradient_has_a_part_from_the_reconstruction_and_one_from_l0():
    sae, (rows, _) = CASE.sae(), CASE.rows
    losses = losses_of(sae, rows)
    through_latents, through_firing = Reference(CASE, sae).pseudo_gradients()
    np.testing.assert_allclose(threshold_gradient(sae, losses.reconstruction), through_latents, rtol=1e-6)
    np.testing.assert_allclose(COEFFICIENT * threshold_gradient(sae, losses.sparsity), through_firing, rtol=1e-6)


def test_the_l0_penalty_gives_no_gradient_to_the_pre_activations():
    sae, (rows, _) = CASE.sae(), CASE.rows
    losses_of(sae, rows).sparsity.backward()
    for name, p in sae.named_parameters():
        assert name == "activation.threshold" or p.grad is None or not p.grad.any(), name
    assert (sae.activation.threshold.grad < 0).all(), "though it does move the thresholds: upwards, as there are rows in every band"


def test_the_l0_part_is_the_slope_of_l0_across_the_band():
    """(L0 at theta + eps/2 less L0 at theta - eps/2) / eps counts exactly the rows inside the band."""
    sae, (rows, _) = CASE.sae(), CASE.rows
    found = threshold_gradient(sae, losses_of(sae, rows).sparsity)
    for i in range(sae.width):
        above, below = (losses_of(moved(i, sign * BANDWIDTH / 2), rows).sparsity.item() for sign in (1, -1))
        assert found[i] == pytest.approx((above - below) / BANDWIDTH, rel=1e-9)


def test_the_pseudo_gradient_estimates_the_slope_of_the_expected_loss():
    """What the kernel is for: over many rows the sum in the band is the derivative of the expectation."""
    sae, width = CASE.sae(), 0.05
    config = CASE.config.model_copy(update={"bandwidth": width})
    rows = torch.randn(100_000, ONE.d_in, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = threshold_gradient(sae, total_of(sae, rows, config))
    for i in np.argsort(-np.abs(found))[:6].tolist():
        above, below = (total_of(moved(i, sign * width / 2), rows, config).item() for sign in (1, -1))
        assert found[i] == pytest.approx((above - below) / width, rel=0.1)


def test_repeating_a_batch_changes_neither_loss_nor_gradients():
    sae, (rows, _) = CASE.sae(), CASE.rows
    once, thrice = total_of(sae, rows), total_of(sae, rows.repeat(3, 1))
    assert thrice.item() == pytest.approx(once.item(), rel=1e-12)
    for (name, _), one, other in zip(
        sae.named_parameters(), *(torch.autograd.grad(t, list(sae.parameters())) for t in (once, thrice)), strict=True
    ):
        np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-9, atol=1e-13, err_msg=name)


def test_rows_outside_the_band_give_the_threshold_nothing():
    sae, (rows, _) = CASE.sae(), CASE.rows
    assert not threshold_gradient(sae, total_of(sae, rows, CASE.config.model_copy(update={"bandwidth": 1e-9}))).any()


@pytest.mark.parametrize(("limit", "more"), [(0.05, True), (1.0, False)])
def test_the_frequency_term_pushes_hardest_at_what_fires_most(limit, more):
    """Its push is 1 + 2 p / f0 times that of L0 alone."""
    plain, limited = CASE, replace(CASES["jumprelu frequency"], options={"frequency_limit": limit})
    pushes = []
    for case in (plain, limited):
        sae = case.sae()
        pushes.append(threshold_gradient(sae, losses_of(sae, case.rows[0], case.config).sparsity))
    firing = Reference(CASE, CASE.sae()).on.mean(axis=0)
    np.testing.assert_allclose(pushes[1] / pushes[0], 1 + 2 * firing / limit, rtol=1e-9)
    assert ((pushes[1] / pushes[0]).max() > 10) == more


@pytest.mark.parametrize(("target", "sign"), [(1.0, -1), (15.0, 1)])
def test_a_target_pulls_l0_towards_itself_from_both_sides(target, sign):
    case = replace(CASES["jumprelu target"], options={"penalty": "target_l0", "sparsity": target})
    sae = case.sae()
    assert (losses_of(sae, case.rows[0], case.config).codes.l0.item() > target) == (sign < 0)
    assert (np.sign(threshold_gradient(sae, losses_of(sae, case.rows[0], case.config).sparsity)) == sign).all()


def test_the_pre_activation_loss_reaches_a_latent_that_never_fires():
    case = CASES["jumprelu pre-activation"]
    sae = case.sae()
    with torch.no_grad():
        sae.b_enc[3] = -50.0
    total_of(sae, case.rows[0], case.config).backward()
    norm = sae.W_dec[3].norm().item() * case.config.pre_activation_coefficient
    assert sae.b_enc.grad[3].item() == pytest.approx(-norm) and sae.activation.threshold.grad[3].item() == pytest.approx(norm)


def test_a_threshold_never_becomes_negative():
    sae, (rows, _) = CASE.sae(torch.float32), CASE.rows
    optimizer = Optimizer(sae, CASE.config)
    threshold = sae.activation.threshold
    for step in range(3):
        total_of(sae, rows.float()).backward()
        threshold.grad = torch.where(torch.arange(sae.width) % 2 == 0, 1.0, -1.0)
        optimizer.update(0.5)
        assert (threshold >= 0).all(), step
    assert not threshold[::2].any(), "pushed down, they rest at zero"
    assert (threshold[1::2] > 1).all(), "pushed up, they are free"


def test_a_latent_exactly_at_its_threshold_is_off():
    sae = initial_sae(quick(width=1, initial_threshold=0.5), Shape.square(1), torch.zeros(1))
    torch.nn.init.ones_(sae.W_enc)
    rows = torch.tensor([[0.5], [0.75], [-2.0]])
    assert sae.encode(rows).flatten().tolist() == [0.0, 0.75, 0.0]
    losses = losses_of(sae, rows)
    assert losses.codes.values.flatten().tolist() == [0.0, 0.75, 0.0] and losses.sparsity.item() == pytest.approx(1 / 3)


def test_the_start_is_gemma_scopes():
    width, d = 512, 64
    sae = initial_sae(quick(width=width, initial_decoder_bias="zero", initial_threshold=0.001), Shape.square(d), torch.full((d,), 7.0))
    np.testing.assert_allclose(sae.W_dec.norm(dim=1).detach().numpy(), 1, rtol=1e-6)
    assert torch.equal(sae.W_enc, sae.W_dec) and sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    assert not sae.b_enc.any() and not sae.b_dec.any()
    assert (sae.activation.threshold == torch.tensor(0.001)).all()
    scaled = sae.W_dec.detach().double() * d**0.5  # uniform entries, each row brought to norm sqrt(d)
    assert scaled.mean().abs() < 0.02 and scaled.var().item() == pytest.approx(1, abs=0.01)
    assert scaled.abs().max() < 3**0.5 * 1.35, "uniform: bounded, where a normal would reach beyond 4"


def test_the_start_depends_on_the_seed_alone_and_the_bias_may_start_at_the_mean():
    mean = torch.arange(8.0)
    first, again, other = (initial_sae(quick(initial_decoder_bias="mean", seed=seed), Shape.square(8), mean) for seed in (3, 3, 4))
    assert torch.equal(first.W_dec, again.W_dec) and not torch.equal(first.W_dec, other.W_dec)
    assert torch.equal(first.b_dec, mean)


def l0_after_begin(wanted: float, width: int, rows: int) -> float:
    config = quick(width=width, initial_l0=wanted, initial_decoder_bias="zero")
    sae, x = initial_sae(config, Shape.square(32), torch.zeros(32)), torch.randn(rows, 32, generator=torch.Generator().manual_seed(8))
    calibrate(sae, config, x, x)
    assert (sae.activation.threshold >= 0).all()
    return losses_of(sae, x, config).codes.l0.item()


@pytest.mark.parametrize("wanted", [2.0, 8.0, 30.0])
def test_initial_l0_is_the_l0_of_the_first_batch(wanted):
    assert l0_after_begin(wanted, width=128, rows=1024) == pytest.approx(wanted, rel=0.05)


def test_initial_l0_holds_where_a_latent_fires_less_than_once_in_a_batch():
    """As at Gemma Scope's 2^20 latents: L0 = 50 is one firing in five batches of 4,096 rows."""
    assert l0_after_begin(4.0, width=4096, rows=256) == pytest.approx(4.0, rel=0.25)
