"""JumpReLU's loss and gradients against float64 numpy, and against slopes of the loss itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scopemill.trainer.config import PRESETS, SaeConfig
from scopemill.trainer.jumprelu import JumpReLU
from scopemill.trainer.optimizer import Optimizer

B, D, F = 96, 12, 20
BANDWIDTH, COEFFICIENT = 0.4, 0.37
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def make_config(**changes) -> SaeConfig:
    return SaeConfig(**PRESETS["quick"] | dict(width=F, sparsity=COEFFICIENT, bandwidth=BANDWIDTH) | changes)


def make_sae(dtype: torch.dtype = torch.float64, seed: int = 0) -> JumpReLU:
    """Every parameter its own random numbers, so that no term hides behind a zero or a tie."""
    generator = torch.Generator().manual_seed(seed)
    sae = JumpReLU(D, F, centred=True)
    with torch.no_grad():
        sae.W_enc.normal_(0, 0.4, generator=generator)
        sae.W_dec.normal_(0, 0.4, generator=generator)
        sae.b_enc.normal_(0, 0.3, generator=generator)
        sae.b_dec.normal_(0, 0.5, generator=generator)
        sae.threshold.uniform_(0.3, 0.9, generator=generator)
    return sae.to(dtype)


def make_rows(dtype: torch.dtype = torch.float64, rows: int = B) -> torch.Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def reference(sae: JumpReLU, rows: torch.Tensor, bandwidth: float = BANDWIDTH, coefficient: float = COEFFICIENT) -> SimpleNamespace:
    """Loss and gradients by hand, from the published formulas."""
    w_enc, b_enc, w_dec, b_dec, theta = (dict(sae.named_parameters())[name].detach().double().numpy() for name in NAMES)
    x = rows.double().numpy()
    n = len(x)
    centred = x - b_dec
    z = centred @ w_enc.T + b_enc
    on = z > theta
    f = np.where(on, z, 0.0)
    error = f @ w_dec + b_dec - x
    d_output = 2 * error / n
    d_f = d_output @ w_dec.T
    d_z = np.where(on, d_f, 0.0)
    kernel = (np.abs((z - theta) / bandwidth) < 0.5).astype(float)
    reconstruction_part = (-(theta / bandwidth) * kernel * d_f).sum(0)
    l0_part = -(coefficient / bandwidth) * kernel.sum(0) / n
    return SimpleNamespace(
        z=z, on=on, f=f, kernel=kernel, d_f=d_f, theta=theta,
        reconstruction=(error**2).sum(axis=1).mean(),
        l0=on.sum(axis=1).mean(),
        loss=(error**2).sum(axis=1).mean() + coefficient * on.sum(axis=1).mean(),
        reconstruction_part=reconstruction_part,
        l0_part=l0_part,
        gradients={
            "W_dec": f.T @ d_output,
            "b_dec": d_output.sum(0) - (d_z @ w_enc).sum(0),
            "W_enc": d_z.T @ centred,
            "b_enc": d_z.sum(0),
            "threshold": reconstruction_part + l0_part,
        },
    )  # fmt: skip


def gradients(sae: JumpReLU, loss: torch.Tensor) -> dict[str, np.ndarray]:
    parameters = dict(sae.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: np.zeros(p.shape) if g is None else g.double().numpy() for (n, p), g in zip(parameters.items(), found, strict=True)}


def test_the_band_of_the_kernel_is_populated_on_both_sides_of_the_threshold():
    expected = reference(make_sae(), make_rows())
    in_band = expected.kernel > 0
    assert (in_band & expected.on).sum() > 50 and (in_band & ~expected.on).sum() > 50
    assert in_band.any(axis=0).all(), "every latent's threshold gets a gradient"
    assert (~in_band & expected.on).sum() > 50 and (~in_band & ~expected.on).sum() > 50


def test_the_loss_is_the_mean_over_rows_of_the_error_summed_over_d_plus_lambda_times_l0():
    sae, rows = make_sae(), make_rows()
    losses, expected = sae.losses(rows, make_config()), reference(sae, rows)
    assert losses.reconstruction.item() == pytest.approx(expected.reconstruction, rel=1e-12)
    assert losses.sparsity.item() == pytest.approx(expected.l0, rel=1e-12)
    assert losses.total(COEFFICIENT).item() == pytest.approx(expected.loss, rel=1e-12)
    np.testing.assert_allclose(losses.latents.numpy(), expected.f, rtol=0, atol=1e-12)
    assert not losses.latents.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_the_published_one(name):
    sae, rows = make_sae(), make_rows()
    found = gradients(sae, sae.losses(rows, make_config()).total(COEFFICIENT))
    expected = reference(sae, rows).gradients[name]
    assert np.count_nonzero(expected) == expected.size, "no entry is trivially right"
    np.testing.assert_allclose(found[name], expected, rtol=1e-10, atol=1e-13)


def test_the_thresholds_gradient_has_a_part_from_the_reconstruction_and_one_from_l0():
    sae, rows = make_sae(), make_rows()
    losses, expected = sae.losses(rows, make_config()), reference(sae, rows)
    found = torch.autograd.grad(losses.reconstruction, sae.threshold, retain_graph=True)[0].numpy()
    np.testing.assert_allclose(found, expected.reconstruction_part, rtol=1e-10)
    found = torch.autograd.grad(COEFFICIENT * losses.sparsity, sae.threshold)[0].numpy()
    np.testing.assert_allclose(found, expected.l0_part, rtol=1e-10)


def test_the_l0_penalty_gives_no_gradient_to_the_pre_activations():
    sae, rows = make_sae(), make_rows()
    found = gradients(sae, sae.losses(rows, make_config()).sparsity)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert not found[name].any()
    assert (found["threshold"] < 0).all(), "though it does move the thresholds: upwards, as there are rows in every band"


def test_float32_training_agrees_with_float64():
    sae, rows = make_sae(torch.float32), make_rows(torch.float32)
    expected = reference(sae, rows)
    distance = np.abs(np.abs(expected.z - expected.theta) - BANDWIDTH / 2).min(), np.abs(expected.z - expected.theta).min()
    assert min(distance) > 1e-6, "no row so close to an edge that rounding decides"
    losses = sae.losses(rows, make_config())
    assert losses.total(COEFFICIENT).item() == pytest.approx(expected.loss, rel=1e-6)
    for name, found in gradients(sae, losses.total(COEFFICIENT)).items():
        np.testing.assert_allclose(found, expected.gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_gradients_of_weights_and_biases_are_finite_differences_of_the_loss(name):
    sae, config = make_sae(), make_config()
    rows = make_rows(rows=400)
    z = reference(sae, rows)
    rows = rows[torch.from_numpy((np.abs(z.z - z.theta) > 1e-3).all(axis=1))]  # no latent switches within the step
    assert len(rows) > 100
    found = gradients(sae, sae.losses(rows, config).total(COEFFICIENT))[name].ravel()
    parameter, step = dict(sae.named_parameters())[name].detach().view(-1), 1e-6
    for i in range(0, parameter.numel(), 7):
        kept = parameter[i].item()
        values = []
        for sign in (1, -1):
            parameter[i] = kept + sign * step
            values.append(sae.losses(rows, config).total(COEFFICIENT).item())
        parameter[i] = kept
        assert found[i] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_the_l0_part_is_the_slope_of_l0_across_the_band():
    """(L0 at theta + eps/2 less L0 at theta - eps/2) / eps counts exactly the rows inside the band."""
    sae, rows = make_sae(), make_rows()
    found = torch.autograd.grad(sae.losses(rows, make_config()).sparsity, sae.threshold)[0]
    for i in range(F):
        ends = []
        for sign in (1, -1):
            moved = make_sae()
            with torch.no_grad():
                moved.threshold[i] += sign * BANDWIDTH / 2
            ends.append(moved.losses(rows, make_config()).sparsity.item())
        assert found[i].item() == pytest.approx((ends[0] - ends[1]) / BANDWIDTH, rel=1e-9)


def test_the_pseudo_gradient_estimates_the_slope_of_the_expected_loss():
    """What the kernel is for: over many rows the sum in the band is the derivative of the expectation."""
    sae, config = make_sae(), make_config(bandwidth=0.05)
    rows = make_rows(rows=100_000)
    found = torch.autograd.grad(sae.losses(rows, config).total(COEFFICIENT), sae.threshold)[0]
    strongest = found.abs().argsort(descending=True)[:6].tolist()
    for i in strongest:
        ends = []
        for sign in (1, -1):
            moved = make_sae()
            with torch.no_grad():
                moved.threshold[i] += sign * 0.05 / 2
                ends.append(moved.losses(rows, config).total(COEFFICIENT).item())
        assert found[i].item() == pytest.approx((ends[0] - ends[1]) / 0.05, rel=0.1)


def test_repeating_a_batch_changes_neither_loss_nor_gradients():
    sae, rows = make_sae(), make_rows()
    once = sae.losses(rows, make_config()).total(COEFFICIENT)
    thrice = sae.losses(rows.repeat(3, 1), make_config()).total(COEFFICIENT)
    assert thrice.item() == pytest.approx(once.item(), rel=1e-12)
    first, second = gradients(sae, once), gradients(sae, thrice)
    for name in NAMES:
        np.testing.assert_allclose(second[name], first[name], rtol=1e-9, atol=1e-13)


def test_a_mean_over_elements_would_be_told_apart():
    """Its reconstruction gradients are d times too small beside the same lambda and bandwidth."""
    sae, rows = make_sae(), make_rows()
    found = gradients(sae, sae.losses(rows, make_config()).total(COEFFICIENT))["threshold"]
    expected = reference(sae, rows)
    wrong = expected.reconstruction_part / D + expected.l0_part
    assert np.abs(found - wrong).max() > 100 * np.abs(found - expected.gradients["threshold"]).max()
    assert not np.allclose(found, wrong, rtol=0.05)


def test_an_l0_step_fed_with_latents_instead_of_pre_activations_would_be_told_apart():
    """A latent below its threshold is zero, outside the window: half of the gradient would be lost."""
    sae, rows = make_sae(), make_rows()
    expected = reference(sae, rows)
    wrong = -(np.abs((expected.f - expected.theta) / BANDWIDTH) < 0.5).sum(0) / (BANDWIDTH * B)
    found = torch.autograd.grad(sae.losses(rows, make_config()).sparsity, sae.threshold)[0].numpy()
    assert not np.allclose(found, wrong, rtol=0.05)
    assert found.sum() < 1.5 * wrong.sum(), "both are negative, and the true one counts the lower half too"


def test_rows_outside_the_band_give_the_threshold_nothing():
    sae, rows = make_sae(), make_rows()
    found = torch.autograd.grad(sae.losses(rows, make_config(bandwidth=1e-9)).total(COEFFICIENT), sae.threshold)[0]
    assert not found.any()


def test_a_threshold_never_becomes_negative():
    sae, config = make_sae(torch.float32), make_config()
    optimizer = Optimizer(sae, config)
    for step in range(3):
        sae.losses(make_rows(torch.float32), config).total(COEFFICIENT).backward()
        sae.threshold.grad = torch.where(torch.arange(F) % 2 == 0, 1.0, -1.0)
        optimizer.update(0.5)
        assert (sae.threshold >= 0).all(), step
    assert not sae.threshold[::2].any(), "pushed down, they rest at zero"
    assert (sae.threshold[1::2] > 1).all(), "pushed up, they are free"


def test_a_latent_exactly_at_its_threshold_is_off():
    sae = JumpReLU(1, 1, centred=False)
    with torch.no_grad():
        sae.W_enc.fill_(1)
        sae.threshold.fill_(0.5)
    rows = torch.tensor([[0.5], [0.75], [-2.0]])
    assert sae.encode(rows).flatten().tolist() == [0.0, 0.75, 0.0]
    losses = sae.losses(rows, make_config(width=1))
    assert losses.latents.flatten().tolist() == [0.0, 0.75, 0.0] and losses.sparsity.item() == pytest.approx(1 / 3)


def test_training_and_inference_agree_on_the_latents():
    sae, rows = make_sae(torch.float32), make_rows(torch.float32)
    assert torch.equal(sae.losses(rows, make_config()).latents, sae.encode(rows).detach())


def test_the_start_is_gemma_scopes():
    width, d = 512, 64
    sae = JumpReLU.initial(make_config(width=width, initial_decoder_bias="zero", initial_threshold=0.001), d, torch.full((d,), 7.0))
    np.testing.assert_allclose(sae.W_dec.norm(dim=1).detach().numpy(), 1, rtol=1e-6)
    assert torch.equal(sae.W_enc, sae.W_dec) and sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    assert not sae.b_enc.any() and not sae.b_dec.any()
    assert (sae.threshold == torch.tensor(0.001)).all()
    scaled = sae.W_dec.detach().double() * d**0.5  # uniform entries, each row brought to norm sqrt(d)
    assert scaled.mean().abs() < 0.02 and scaled.var().item() == pytest.approx(1, abs=0.01)
    assert scaled.abs().max() < 3**0.5 * 1.35, "uniform: bounded, where a normal would reach beyond 4"


def test_the_start_depends_on_the_seed_alone_and_the_bias_may_start_at_the_mean():
    mean = torch.arange(8.0)
    config = make_config(initial_decoder_bias="mean", seed=3)
    first, again, other = (
        JumpReLU.initial(config, 8, mean),
        JumpReLU.initial(config, 8, mean),
        JumpReLU.initial(make_config(seed=4), 8, mean),
    )
    assert torch.equal(first.W_dec, again.W_dec) and not torch.equal(first.W_dec, other.W_dec)
    assert torch.equal(first.b_dec, mean)
