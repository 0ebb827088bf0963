"""Every architecture's loss and gradients against the published formulas in float64 numpy."""

import numpy as np
import pytest
import torch
from support.sae_reference import CASES, Reference

from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.objective import Losses
from scopemill.trainer.sae.registry import objective_for

REFERENCES = {name: Reference(case, case.sae()) for name, case in CASES.items()}
# Differences of the reference have errors of about 1e-9, float32 sums of about 1e-5.
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 3e-4)], ids=["float64", "float32"])
EVERY = pytest.mark.parametrize("name", CASES)


def losses_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[Sae, Losses]:
    case = CASES[name]
    sae = case.sae(dtype)
    x, y = (rows.to(dtype) for rows in case.rows)
    return sae, objective_for(sae, case.config).losses(x, y, case.dead(sae.width))


@EVERY
def test_the_cases_leave_no_term_out(name):
    """Latents fire and do not, thresholds' bands are populated on both sides, and AuxK has something to choose from."""
    reference = REFERENCES[name]
    assert 0.1 < reference.on.mean() < 0.7
    if "activation.threshold" in reference.p:
        for side in (reference.on, ~reference.on):
            assert (reference.kernel & side).any(axis=0).mean() > 0.8
    if CASES[name].k:
        positive = reference.dead & (reference.pre(reference.p) > 0)
        assert reference.revived.any(axis=1).mean() > 0.5 and reference.revived.sum() < positive.sum()


@DTYPES
@EVERY
def test_latents_and_every_part_of_the_loss_are_the_published_ones(name, dtype, tolerance):
    _, losses = losses_of(name, dtype)
    reference = REFERENCES[name]
    p, f, firing = reference.p, reference.f, reference.on.mean(axis=0)
    np.testing.assert_allclose(losses.codes.values.detach().numpy(), f, rtol=0, atol=tolerance)
    np.testing.assert_allclose(losses.codes.frequency.detach().numpy(), firing, rtol=1e-6)
    assert losses.codes.l0.item() == pytest.approx(reference.on.sum(axis=1).mean(), rel=1e-6)
    assert losses.reconstruction.item() == pytest.approx((reference.error**2).sum(axis=1).mean(), rel=tolerance)
    assert losses.sparsity.item() == pytest.approx(reference.penalty(p, f, firing), rel=tolerance)
    assert float(torch.as_tensor(losses.auxiliary).detach()) == pytest.approx(reference.auxiliary(p), rel=tolerance)
    assert losses.total(CASES[name].config.coefficient).item() == pytest.approx(reference.loss(p), rel=tolerance)


@DTYPES
@EVERY
def test_every_gradient_is_the_published_one(name, dtype, tolerance):
    sae, losses = losses_of(name, dtype)
    losses.total(CASES[name].config.coefficient).backward()
    expected = REFERENCES[name].gradients
    assert expected.keys() == dict(sae.named_parameters()).keys()
    for parameter, p in sae.named_parameters():
        size = np.abs(expected[parameter]).max()
        assert size > 1e-3, parameter
        np.testing.assert_allclose(p.grad.numpy(), expected[parameter], rtol=tolerance, atol=tolerance * size, err_msg=parameter)
