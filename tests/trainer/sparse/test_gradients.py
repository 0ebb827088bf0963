"""Gradients of the sparse way go to a collector, or to autograd where there is none: then torch's own optimisers train."""

import copy

import pytest
import torch
from support.sparse_kinds import KINDS, B, make

from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.activations.relu import ReLU
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import objective_for
from scopemill.trainer.sparse.codes import SparseCodes
from scopemill.trainer.sparse.gradients import SparseGradients


def batch(sae: Sae, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, sae.shape.d_in, generator=generator)
    return x, x if sae.shape.autoencoder else torch.randn(B, sae.shape.d_out, generator=generator)


@pytest.mark.parametrize(("word", "activation"), KINDS)
def test_torchs_adam_trains_on_sparse_losses_as_on_dense_ones(word, activation):
    config, start = make(word, activation)
    dead = torch.arange(start.width) % 3 == 0
    trained = []
    for max_entries in (0, 10**6):
        sae = copy.deepcopy(start)
        objective, adam = objective_for(sae, config), torch.optim.Adam(sae.parameters(), lr=1e-2, eps=1e-2)
        for seed in range(5):
            adam.zero_grad()
            losses = objective.losses(*batch(sae, seed), dead, max_entries)
            assert isinstance(losses.codes, SparseCodes) == bool(max_entries)
            losses.total(0.01).backward()
            adam.step()
            sae.activation.after_update()
        trained.append(sae)
    dense, sparse = trained
    for name, p in dense.named_parameters():
        moved = (p - start.get_parameter(name)).abs().max().item()
        torch.testing.assert_close(sparse.get_parameter(name), p, rtol=0, atol=1e-3 * moved + 1e-7, msg=lambda m, n=name: f"{n}: {m}")
        if name.startswith(("W_enc", "W_dec")):
            assert moved > 1e-3, name


def test_torchs_adam_trains_on_the_forward_pass_as_it_trains_a_plain_model():
    d, f, shape = 12, 20, Shape.square(12)
    sae = Sae(shape, f, ReLU(f), centred=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in sae.parameters():
            p.normal_(0, 0.3, generator=generator)
    w_enc, b_enc, w_dec, b_dec = (p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    ours, theirs = torch.optim.Adam(sae.parameters(), lr=1e-2, eps=1e-4), torch.optim.Adam([w_enc, b_enc, w_dec, b_dec], lr=1e-2, eps=1e-4)
    first = last = 0.0
    for seed in range(40):
        x = torch.randn(64, d, generator=torch.Generator().manual_seed(seed))
        ours.zero_grad()
        theirs.zero_grad()
        loss = (sae(x) - x).square().sum(1).mean()
        loss.backward()
        ours.step()
        (torch.relu((x - b_dec) @ w_enc.T + b_enc) @ w_dec + b_dec - x).square().sum(1).mean().backward()
        theirs.step()
        first, last = first or loss.item(), loss.item()
    for p, wanted in ((sae.W_enc, w_enc), (sae.b_enc, b_enc), (sae.W_dec, w_dec), (sae.b_dec, b_dec)):
        torch.testing.assert_close(p, wanted, rtol=0, atol=1e-4)
    assert last < first / 2


def test_a_collector_takes_all_of_the_weights_gradients_and_nothing_else():
    config, sae = make("jumprelu", "jumprelu")
    collected = SparseGradients()
    objective_for(sae, config).losses(*batch(sae, 0), torch.zeros(sae.width, dtype=torch.bool), 10**6, collected).total(0.1).backward()
    assert sae.W_enc.grad is None and sae.W_dec.grad is None
    assert len(collected.of(sae.W_enc)) == len(collected.of(sae.W_dec)) == 1
    assert not collected.of(sae.b_enc) and sae.b_enc.grad.any() and sae.b_dec.grad.any()


def test_frozen_weights_get_no_gradient():
    config, sae = make("jumprelu", "jumprelu")
    sae.W_dec.requires_grad_(False)
    collected = SparseGradients()
    for gradients in (collected, None):
        objective_for(sae, config).losses(*batch(sae, 0), torch.zeros(sae.width, dtype=torch.bool), 10**6, gradients).total(0.1).backward()
    assert sae.W_dec.grad is None and not collected.of(sae.W_dec) and sae.W_enc.grad.any()
