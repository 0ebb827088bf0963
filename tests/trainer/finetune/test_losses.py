import numpy as np
import torch

from scopemill.trainer.finetune.losses import balanced, divergence, squared_error


def test_the_divergence_is_the_mean_kl_over_rows_in_nats():
    rng = np.random.default_rng(0)
    clean, spliced = rng.normal(0, 3, (2, 5, 11))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (clean, spliced))
    by_hand = (p * np.log(p / q)).sum(1).mean()
    assert np.isclose(divergence(torch.tensor(clean), torch.tensor(spliced)), by_hand, rtol=1e-5)
    assert divergence(torch.tensor(clean), torch.tensor(clean)) == 0


def test_logits_far_apart_have_a_finite_divergence():
    clean, spliced = torch.tensor([[300.0, 0.0]]), torch.tensor([[0.0, 300.0]])
    assert torch.isclose(divergence(clean, spliced), torch.tensor(300.0))


def test_the_balanced_loss_has_the_value_of_the_mse_and_half_of_each_gradient():
    w = torch.tensor(2.0, requires_grad=True)
    kl, mse = w**3, 5 * w
    loss = balanced(kl, mse)
    loss.backward()
    assert loss.item() == 10
    assert np.isclose(w.grad.item(), (10 / 8 * 3 * 2**2 + 5) / 2)  # alpha = MSE / KL passes no gradient


def test_the_balanced_loss_of_a_perfect_reconstruction_is_zero():
    zero = torch.tensor(0.0, requires_grad=True)
    loss = balanced(zero * 1, zero * 1)
    loss.backward()
    assert loss.item() == 0 and zero.grad.isfinite()


def test_the_squared_error_sums_over_columns_and_averages_over_rows():
    assert squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == 2.5
