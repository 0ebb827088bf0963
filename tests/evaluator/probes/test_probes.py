"""Probes: logistic regression, the choice of latents, the baselines, and prompts through the language model, each by hand."""

import numpy as np
import pytest
import torch
from scipy import sparse
from support.sae_reference import quick

from scopemill.evaluator.config import EvaluationConfig, ProbesConfig
from scopemill.evaluator.probes.baselines import encode_onto_random, encode_random, largest, random_dictionary
from scopemill.evaluator.probes.logistic import best_penalty, fitted, probe, standardized
from scopemill.evaluator.probes.measure import TaskRows, by_difference, encoded, probe_latents, probe_residual
from scopemill.evaluator.probes.prompts import last_rows, with_bos
from scopemill.evaluator.probes.scores import ProbeSummary
from scopemill.evaluator.probes.tasks import Task
from scopemill.proto.hooks import Hook
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.registry import initial_sae


def newton(x: np.ndarray, y: np.ndarray, c: float) -> np.ndarray:
    """Weights and bias that minimize c * sum of logistic losses + |w|^2 / 2, by Newton's method in float64."""
    a = np.column_stack([x, np.ones(len(x))])
    ridge = np.diag([1.0] * x.shape[1] + [0.0])
    w = np.zeros(a.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-a @ w))
        step = np.linalg.solve(c * (a * (p * (1 - p))[:, None]).T @ a + ridge, c * a.T @ (p - y) + ridge @ w)
        w = w - step
        if np.abs(step).max() < 1e-12:
            break
    return w


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, 0.0]
    y = x[:, 0] + 0.05 * x[:, 1] + rng.normal(size=200) > 0.2
    return x, y, np.arange(200) >= 140


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0, 10.0])
def test_the_regression_is_newtons(rows, c):
    x, y, is_test = rows
    train, _ = standardized(x[~is_test], x[is_test])
    model, by_hand = fitted(train, y[~is_test], c), newton(train, y[~is_test].astype(float), c)
    np.testing.assert_allclose([*model.coef_[0], model.intercept_[0]], by_hand, atol=2e-4)


def test_a_score_is_the_share_of_pairs_in_order_and_of_rows_on_their_side(rows):
    x, y, is_test = rows
    mean, deviation = x[~is_test].mean(0), x[~is_test].std(0)
    w = newton((x[~is_test] - mean) / deviation, y[~is_test].astype(float), best_penalty((x[~is_test] - mean) / deviation, y[~is_test]))
    margins = (x[is_test] - mean) / deviation @ w[:-1] + w[-1]
    yes, no = margins[y[is_test]], margins[~y[is_test]]
    score = probe(x, y, is_test)
    assert score.auc == pytest.approx((yes[:, None] > no[None]).mean(), abs=1e-3)
    assert score.accuracy == pytest.approx(((margins > 0) == y[is_test]).mean(), abs=0.02)


def test_the_test_rows_choose_nothing(rows):
    x, y, is_test = rows
    moved = x.copy()
    moved[is_test] = moved[is_test] * 3 + 100  # every margin moves by the same, and is stretched: the order of rows stays
    assert probe(moved, y, is_test).auc == pytest.approx(probe(x, y, is_test).auc, abs=1e-9)


def test_a_column_that_never_changes_is_nothing_to_a_probe():
    train, test = standardized(np.array([[1e6, 1.0], [1e6, 3.0]]), np.array([[7.0, 2.0]]))
    assert train.tolist() == [[0.0, -1.0], [0.0, 1.0]] and test.tolist() == [[0.0, 0.0]]


def test_latents_are_ordered_by_the_difference_of_their_means():
    latents = np.array([[0, 1, 2, 5], [0, 1, 4, 5], [1, 1, 0, 5], [0, 1, 0, 5.0]])
    targets = np.array([True, True, False, False])
    # differences: 0 - .5, 0, 3 - 0, 0; of equals the first comes first
    assert by_difference(sparse.csr_array(latents), targets).tolist() == [2, 0, 1, 3]


def test_random_dictionaries_are_reproducible_and_as_sparse_as_asked():
    dictionary = random_dictionary(64, 16)
    assert dictionary.equal(random_dictionary(64, 16)) and torch.allclose(dictionary.norm(dim=1), torch.ones(64))
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    products = x @ dictionary.T
    latents = encode_random(x, dictionary, 5)
    assert ((latents > 0).sum(1) == 5).all() and latents[latents > 0].equal(products[latents > 0])
    assert (products.masked_fill(latents > 0, -1).max(1).values <= latents.masked_fill(latents == 0, 1e9).min(1).values).all()
    assert largest(-torch.ones(1, 4), 2).equal(torch.zeros(1, 4)), "a latent is positive or 0"


def test_a_frozen_decoders_latents_rebuild_better_than_a_frozen_encoders():
    dictionary = random_dictionary(128, 32)
    truth = largest(torch.rand(200, 128, generator=torch.Generator().manual_seed(2)), 3)
    x = truth @ dictionary
    pursued = encode_onto_random(x, dictionary, 3)
    error = (x - pursued @ dictionary).square().sum() / x.square().sum()
    first = encode_random(x, dictionary, 3)
    assert ((pursued > 0).sum(1) <= 3).all() and (pursued >= 0).all()
    assert error < 0.5 * (x - first @ dictionary).square().sum() / x.square().sum()


def sae_of(W_enc: torch.Tensor):
    F, d = W_enc.shape
    sae = initial_sae(quick(width=F, sparsity=1), Shape.square(d), torch.zeros(d)).requires_grad_(False)
    sae.W_enc.copy_(W_enc)
    sae.b_enc.zero_()
    return sae


def test_a_latent_that_is_the_label_needs_one_latent_and_random_dictionaries_more():
    """In 32 dimensions beside 31 directions that say nothing; half of the prompts have the label's direction."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(300, 32, generator=g)
    targets = np.arange(300) % 2 == 1
    x[:, 0] = torch.from_numpy(np.where(targets, 3.0, -3.0)) + torch.rand(300, generator=g)
    task = Task("label", tuple(map(str, range(300))), targets, np.arange(300) >= 200)
    data = TaskRows([task], x)
    scores = probe_latents(sae_of(torch.eye(64, 32)), data, (1, 5))
    scores += probe_residual(data)
    summary = ProbeSummary.of(scores)
    assert summary.tasks == 1 and list(summary.auc) == [1, 5]
    assert summary.auc[1]["sae"] == summary.auc[5]["sae"] == summary.residual == 1.0
    assert 0.5 < summary.auc[1]["random encoder"] < 0.95 and summary.auc[1]["random decoder"] < 0.95
    assert {(s.task, s.prompts) for s in scores} == {("label", 300)} and [s.k for s in scores if s.latents_of == "residual"] == [32]


def test_encoding_in_blocks_gives_the_latents():
    sae = sae_of(torch.randn(24, 8, generator=torch.Generator().manual_seed(4)))
    x = torch.randn(1100, 8, generator=torch.Generator().manual_seed(5))
    np.testing.assert_allclose(encoded(sae.encode, x, torch.device("cpu")).toarray(), sae.encode(x).numpy(), rtol=1e-6)


def test_each_prompts_last_token_is_read_whatever_shares_its_pass(lm, card):
    generator = torch.Generator().manual_seed(6)
    prompts = [torch.randint(5, 500, (n,), generator=generator).tolist() for n in (9, 2, 30, 1, 17, 5, 40)]
    hooks = (Hook.parse("blocks.1.hook_resid_post"), Hook.parse("blocks.3.hook_mlp_out"))
    tokens = with_bos(prompts, card.bos, 20)
    assert tokens[0] == [card.bos, *prompts[0]] and tokens[2] == [card.bos, *prompts[2][-19:]], "of a long prompt the end is kept"
    rows = last_rows(lm, tokens, hooks, sequences_per_forward=3)
    for row, sequence in zip(rows, tokens, strict=True):
        alone = lm.capture(torch.tensor([sequence]), hooks)
        torch.testing.assert_close(row, torch.cat([alone[hook.name][0, -1] for hook in hooks]), atol=1e-4, rtol=1e-4)


def test_a_folder_is_short_for_a_mapping():
    config = EvaluationConfig.model_validate({"probes": "here"})
    assert config.probes == ProbesConfig(source="here") and config.probes.k == (1, 5, 16)
