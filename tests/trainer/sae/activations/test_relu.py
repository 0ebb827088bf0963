"""ReLU SAEs: what the decoder's norms in the penalty are for. Loss and gradients are in test_losses.py."""

import numpy as np
import pytest
import torch
from support.sae_reference import CASES, Reference

from scopemill.trainer.sae.registry import initial_sae, objective_for

CASE = CASES["standard"]


def test_moving_scale_from_the_encoder_to_the_decoder_changes_nothing():
    """No latent can shrink its way out of the penalty."""
    sae, (x, y) = CASE.sae(), CASE.rows
    before = objective_for(sae, CASE.config).losses(x, y, CASE.dead(sae.width)).total(0.37).item()
    factor = torch.linspace(0.1, 10, sae.width, dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc /= factor[:, None]
        sae.b_enc /= factor
        sae.W_dec *= factor[:, None]
    assert objective_for(sae, CASE.config).losses(x, y, CASE.dead(sae.width)).total(0.37).item() == pytest.approx(before, rel=1e-12)


def test_a_plain_l1_is_another_number():
    reference = Reference(CASE, CASE.sae())
    counted = reference.penalty(reference.p, reference.f, reference.on.mean(axis=0))
    assert not np.isclose(counted, reference.f.sum(axis=1).mean(), rtol=0.05)


def test_the_decoder_is_free_and_starts_with_unit_rows():
    sae = initial_sae(CASE.config, CASE.shape, torch.zeros(CASE.shape.d_out))
    assert not sae.keeps_unit_decoder(CASE.config)
    np.testing.assert_allclose(sae.W_dec.norm(dim=1).detach().numpy(), 1, rtol=1e-6)
    assert sorted(dict(sae.named_parameters())) == ["W_dec", "W_enc", "b_dec", "b_enc"]
