"""The standard SAE's loss and gradients against float64 numpy, and against slopes of the loss itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scopemill.trainer.config import PRESETS, SaeConfig
from scopemill.trainer.standard import Standard

B, D, F = 96, 12, 20
COEFFICIENT = 0.37
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
CONFIG = SaeConfig(**PRESETS["quick"] | dict(architecture="standard", width=F, sparsity=COEFFICIENT))


def make_sae(dtype: torch.dtype = torch.float64) -> Standard:
    """Decoder rows of very different norms, as those are part of the penalty."""
    generator = torch.Generator().manual_seed(0)
    sae = Standard(D, F, centred=True)
    with torch.no_grad():
        sae.W_enc.normal_(0, 0.4, generator=generator)
        sae.W_dec.normal_(0, 0.4, generator=generator).mul_(torch.linspace(0.2, 3, F)[:, None])
        sae.b_enc.normal_(0, 0.3, generator=generator)
        sae.b_dec.normal_(0, 0.5, generator=generator)
    return sae.to(dtype)


def make_rows(dtype: torch.dtype = torch.float64, rows: int = B) -> torch.Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def reference(sae: Standard, rows: torch.Tensor) -> SimpleNamespace:
    w_enc, b_enc, w_dec, b_dec = (dict(sae.named_parameters())[name].detach().double().numpy() for name in NAMES)
    x = rows.double().numpy()
    n = len(x)
    centred = x - b_dec
    z = centred @ w_enc.T + b_enc
    f = np.maximum(z, 0)
    norms = np.sqrt((w_dec**2).sum(axis=1))
    error = f @ w_dec + b_dec - x
    d_output = 2 * error / n
    d_z = np.where(z > 0, d_output @ w_dec.T + COEFFICIENT * norms / n, 0.0)
    l1 = (f * norms).sum(axis=1).mean()
    reconstruction = (error**2).sum(axis=1).mean()
    return SimpleNamespace(
        z=z, f=f, reconstruction=reconstruction, l1=l1, loss=reconstruction + COEFFICIENT * l1,
        gradients={
            "W_dec": f.T @ d_output + COEFFICIENT * f.mean(axis=0)[:, None] * w_dec / norms[:, None],
            "b_dec": d_output.sum(0) - (d_z @ w_enc).sum(0),
            "W_enc": d_z.T @ centred,
            "b_enc": d_z.sum(0),
        },
    )  # fmt: skip


def gradients(sae: Standard, rows: torch.Tensor) -> dict[str, np.ndarray]:
    parameters = dict(sae.named_parameters())
    found = torch.autograd.grad(sae.losses(rows, CONFIG).total(COEFFICIENT), list(parameters.values()))
    return {name: g.double().numpy() for name, g in zip(parameters, found, strict=True)}


def test_the_loss_is_the_error_summed_over_d_plus_lambda_times_an_l1_that_counts_decoder_norms():
    sae, rows = make_sae(), make_rows()
    losses, expected = sae.losses(rows, CONFIG), reference(sae, rows)
    assert losses.reconstruction.item() == pytest.approx(expected.reconstruction, rel=1e-12)
    assert losses.sparsity.item() == pytest.approx(expected.l1, rel=1e-12)
    assert losses.total(COEFFICIENT).item() == pytest.approx(expected.loss, rel=1e-12)
    assert not np.isclose(expected.l1, expected.f.sum(axis=1).mean(), rtol=0.05), "a plain L1 is another number"
    np.testing.assert_allclose(losses.latents.numpy(), expected.f, rtol=0, atol=1e-12)
    assert not losses.latents.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_the_one_derived_by_hand(name):
    sae, rows = make_sae(), make_rows()
    np.testing.assert_allclose(gradients(sae, rows)[name], reference(sae, rows).gradients[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_is_a_finite_difference_of_the_loss(name):
    sae, rows = make_sae(), make_rows(rows=200)
    rows = rows[torch.from_numpy((np.abs(reference(sae, rows).z) > 1e-3).all(axis=1))]  # no latent switches within the step
    assert len(rows) > 50
    found = gradients(sae, rows)[name].ravel()
    parameter, step = dict(sae.named_parameters())[name].detach().view(-1), 1e-6
    for i in range(0, parameter.numel(), 7):
        kept = parameter[i].item()
        values = []
        for sign in (1, -1):
            parameter[i] = kept + sign * step
            values.append(sae.losses(rows, CONFIG).total(COEFFICIENT).item())
        parameter[i] = kept
        assert found[i] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_float32_training_agrees_with_float64():
    sae, rows = make_sae(torch.float32), make_rows(torch.float32)
    expected = reference(sae, rows)
    assert sae.losses(rows, CONFIG).total(COEFFICIENT).item() == pytest.approx(expected.loss, rel=1e-6)
    for name, found in gradients(sae, rows).items():
        np.testing.assert_allclose(found, expected.gradients[name], rtol=1e-4, atol=1e-5)


def test_moving_scale_from_the_encoder_to_the_decoder_changes_nothing():
    """Which is what the norms in the penalty are for: no latent can shrink its way out of it."""
    sae, rows = make_sae(), make_rows()
    before = sae.losses(rows, CONFIG).total(COEFFICIENT).item()
    factor = torch.linspace(0.1, 10, F, dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc /= factor[:, None]
        sae.b_enc /= factor
        sae.W_dec *= factor[:, None]
    assert sae.losses(rows, CONFIG).total(COEFFICIENT).item() == pytest.approx(before, rel=1e-12)


def test_the_decoder_is_free_and_starts_with_unit_rows():
    sae = Standard.initial(CONFIG, D, torch.zeros(D))
    assert not sae.unit_decoder
    np.testing.assert_allclose(sae.W_dec.norm(dim=1).detach().numpy(), 1, rtol=1e-6)
    assert sorted(dict(sae.named_parameters())) == sorted(NAMES)
