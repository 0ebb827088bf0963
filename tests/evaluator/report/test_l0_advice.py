"""Advice on L0: the decoder cosine by hand, and what is said of it."""

import math

import numpy as np
import pytest
import torch
from support.sae_reference import quick

from scopemill.evaluator.fidelity import decoder_cosine as module
from scopemill.evaluator.fidelity.decoder_cosine import decoder_cosine
from scopemill.evaluator.fidelity.results import Result
from scopemill.evaluator.report.l0_advice import advice
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.registry import initial_sae


def sae_with(decoder: torch.Tensor):
    F, d = decoder.shape
    sae = initial_sae(quick(width=F, sparsity=1), Shape.square(d), torch.zeros(d)).requires_grad_(False)
    sae.W_dec.copy_(decoder)
    return sae


@pytest.mark.parametrize("rows_at_once", [7, 65_536])
def test_the_cosine_is_that_of_all_pairs_of_living_rows_whatever_their_lengths(monkeypatch, rows_at_once):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows_at_once)
    g = torch.Generator().manual_seed(0)
    decoder = torch.randn(40, 6, generator=g) * torch.rand(40, 1, generator=g)
    alive = torch.rand(40, generator=g) > 0.3
    w = decoder[alive].double().numpy()
    pairs = [(w[i] @ w[j] / np.linalg.norm(w[i]) / np.linalg.norm(w[j])) ** 2 for i in range(len(w)) for j in range(i)]
    assert decoder_cosine(sae_with(decoder), alive) == pytest.approx(math.sqrt(np.mean(pairs)), rel=1e-6)


def test_orthogonal_rows_have_none_and_copies_all():
    assert decoder_cosine(sae_with(torch.eye(5, 8)), torch.ones(5, dtype=torch.bool)) == pytest.approx(0, abs=1e-7)
    assert decoder_cosine(sae_with(torch.ones(5, 8)), torch.ones(5, dtype=torch.bool)) == pytest.approx(1)
    assert math.isnan(decoder_cosine(sae_with(torch.eye(5, 8)), torch.arange(5) == 0)), "one row has no pair"


def at(l0: float, cosine: float, hook: str = "blocks.3.hook_resid_post") -> Result:
    return Result(
        hook=hook, layer=3, site="resid_post", architecture="topk", width=2048, sparsity=l0, step=5, tokens=5, l0=l0, fvu=0.1,
        dead_fraction=0.0, loss_clean=1.0, loss_spliced=1.0, loss_zero_ablated=2.0, loss_mean_ablated=2.0, delta_loss=0.0,
        recovered_zero=1.0, recovered_mean=1.0, path=f"p/{l0}/checkpoints/5", decoder_cosine=cosine,
    )  # fmt: skip


@pytest.mark.parametrize(
    "cosines, said",
    [
        ((0.09, 0.05, 0.08), "least (0.050) at L0 32.0: the right L0 is probably between 8.0 and 128."),
        ((0.09, 0.05, 0.04), "least (0.040) at L0 128, the highest here: the right L0 is probably higher."),
        ((0.03, 0.05, 0.04), "least (0.030) at L0 8.0, the lowest here: the right L0 is probably lower."),
    ],
)
def test_the_advice_says_where_the_cosine_is_least(cosines, said):
    rows = [at(l0, cosine) for l0, cosine in zip((8.0, 32.0, 128.0), cosines, strict=True)]
    assert advice(rows[::-1]) == [f"layer 3 \u00b7 resid_post, 2k topk: the decoder cosine is {said}"]


def test_two_saes_or_unmeasured_ones_give_no_advice():
    assert advice([at(8.0, 0.1), at(32.0, 0.05)]) == []
    assert advice([at(8.0, 0.1), at(32.0, 0.05), at(64.0, math.nan)]) == []
    assert advice([at(8.0, 0.1), at(32.0, 0.05), at(64.0, 0.2, "blocks.4.hook_resid_post")]) == [], "one hook says nothing of another"
