"""The sparse way through a step gives what the dense way gives: every architecture, every density, empty rows too."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.sparse_kinds import KINDS, B, F, make

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import objective_for
from scopemill.trainer.sparse.entries import Entries, scan
from scopemill.trainer.sparse.gradients import SparseGradients
from scopemill.trainer.sparse.kernels import numba_loops, select
from scopemill.trainer.sparse.kernels.select import backend_for
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import DENSE_ABOVE, SPARSE_BELOW, Loop
from scopemill.trainer.training.optimizer import Optimizer


def batch(sae: Sae, rows: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, sae.shape.d_in, generator=generator)
    return x, x if sae.shape.autoencoder else torch.randn(rows, sae.shape.d_out, generator=generator)


def gradients(sae: Sae, collected: SparseGradients) -> dict[str, torch.Tensor]:
    """All gradients, terms added up by hand in float64; dense ones are cleared."""
    found = {}
    for name, p in sae.named_parameters():
        total = torch.zeros(p.shape, dtype=torch.float64) if p.grad is None else p.grad.double()
        for term in collected.of(p):
            columns = term.entries.columns
            for f in range(len(p)):
                for e in range(columns.starts[f], columns.starts[f + 1]):
                    total[f] += float(term.factors[columns.order[e]]) * term.matrix[columns.rows[e]].double()
        found[name], p.grad = total, None
    return found


def both_ways(config: SaeConfig, sae: Sae, x, y, coefficient: float = 0.3):
    dead = torch.rand(sae.width, generator=torch.Generator().manual_seed(3)) < 0.3
    results = []
    for max_entries in (0, 10**6):
        collected = SparseGradients()
        losses = objective_for(sae, config).losses(x, y, dead, max_entries, collected)
        losses.total(coefficient).backward()
        results.append((losses, gradients(sae, collected)))
    (dense, dense_gradients), (sparse, sparse_gradients) = results
    assert (type(dense.codes).__name__, type(sparse.codes).__name__) == ("DenseCodes", "SparseCodes")
    torch.testing.assert_close(sparse.total(coefficient), dense.total(coefficient), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sparse.codes.frequency, dense.codes.frequency, rtol=1e-6, atol=0)
    for name, wanted in dense_gradients.items():
        within = 3e-6 * (wanted.abs().max().item() + 1e-6)
        assert (sparse_gradients[name] - wanted).abs().max().item() <= within, name
    return dense_gradients


@pytest.mark.parametrize(("word", "activation"), KINDS)
def test_losses_and_gradients_are_those_of_the_dense_way(word, activation):
    config, sae = make(word, activation)
    found = both_ways(config, sae, *batch(sae))
    weights = [name for name in found if name.startswith(("W_enc", "W_dec"))]
    assert weights and all(found[name].abs().max() > 1e-4 for name in weights)


@pytest.mark.parametrize("penalty", ["l0", "tanh", "target_l0"])
def test_every_penalty_and_the_frequency_term_agree(penalty):
    limit = {} if penalty == "tanh" else {"frequency_limit": 0.1}
    config, sae = make("jumprelu", "jumprelu", penalty=penalty, sparsities=[7], bandwidth=0.3, **limit)
    assert both_ways(config, sae, *batch(sae))["activation.threshold"].abs().max() > 0


@pytest.mark.parametrize("threshold", [-10.0, 0.0, 1.5, 100.0])
def test_extreme_densities_and_empty_rows(threshold):
    """From every latent firing, over some rows without any, to none at all."""
    config, sae = make("jumprelu", "jumprelu")
    torch.nn.init.constant_(sae.activation.threshold, threshold)
    x, y = batch(sae)
    x[5:9] = y[5:9] = sae.b_dec.detach()  # nothing to encode but the bias
    both_ways(config, sae, x, y)


def test_too_many_entries_are_left_to_the_dense_way():
    config, sae = make("jumprelu", "jumprelu")
    x, y = batch(sae)
    fired = int(objective_for(sae, config).losses(x, y, torch.zeros(F, dtype=torch.bool)).codes.values.count_nonzero())
    for max_entries, kind in ((fired // 3, "DenseCodes"), (fired * 2, "SparseCodes")):
        losses = objective_for(sae, config).losses(x, y, torch.zeros(F, dtype=torch.bool), max_entries)
        assert type(losses.codes).__name__ == kind


def test_the_pre_activation_loss_is_never_sparse_as_every_latent_counts_there():
    config, sae = make("jumprelu", "jumprelu", pre_activation_coefficient=1e-3)
    assert sae.activation.select(torch.ones(B, F), torch.zeros(F), config, 10**6) is None


@pytest.mark.parametrize("width", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_scan_finds_what_numpy_finds_with_any_number_of_threads(width, threads):
    pre = torch.randn(37, width, generator=torch.Generator().manual_seed(width))
    lower = torch.randn(width, generator=torch.Generator().manual_seed(9)).abs()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        entries, values = scan(pre, torch.zeros(width), lower, pre.numel())
    finally:
        torch.set_num_threads(before)
    rows, latents = np.nonzero((pre > lower).numpy())
    assert entries.latents.tolist() == latents.tolist()
    assert entries.starts.tolist() == np.searchsorted(rows, np.arange(38)).tolist()
    assert values.tolist() == pre.numpy()[rows, latents].tolist()


@pytest.mark.parametrize("k", [1, 7, 200])
def test_the_largest_of_each_row_are_numpys_even_where_values_are_equal(k):
    pre = torch.randint(-3, 4, (40, F), generator=torch.Generator().manual_seed(0)).float()
    pre[20:] = torch.randn(20, F, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 20)[:, None]  # no row is like another
    latents, values = np.zeros((40, k), np.int32), np.zeros((40, k), np.float32)
    numba_loops.largest(pre.numpy(), np.zeros(F, np.float32), k, np.array([0, 13, 40]), latents, values)
    np.testing.assert_array_equal(np.sort(values, axis=1), np.sort(pre.numpy(), axis=1)[:, F - k :])
    np.testing.assert_array_equal(np.take_along_axis(pre.numpy(), latents.astype(int), axis=1), values)
    assert all(len(set(row)) == k for row in latents.tolist())


def test_the_largest_are_those_with_the_bias_and_a_row_of_nans_keeps_nothing():
    generator = torch.Generator().manual_seed(2)
    products, bias = torch.randn(20, F, generator=generator), torch.randn(F, generator=generator)
    products[7] = torch.nan
    latents, values = backend_for(bias).largest(products, bias, 5)
    wanted = (products + bias).sort(dim=1, descending=True)
    for i in set(range(20)) - {7}:
        order = values[i].argsort(descending=True)
        assert latents[i][order].tolist() == wanted.indices[i, :5].tolist()
        assert values[i][order].tolist() == wanted.values[i, :5].tolist()
    assert values[7].isnan().all() and latents[7].tolist() == [0, 1, 2, 3, 4]


def test_entries_by_latents_are_those_by_rows():
    entries, values = scan(torch.randn(30, F, generator=torch.Generator().manual_seed(4)), torch.zeros(F), torch.ones(F), 10**5)
    starts, rows, order = entries.columns
    by_row = {(i, int(f), e) for i in range(30) for e in range(entries.starts[i], entries.starts[i + 1]) for f in [entries.latents[e]]}
    assert by_row == {(int(rows[p]), f, int(order[p])) for f in range(F) for p in range(starts[f], starts[f + 1])}
    wanted = torch.zeros(F).index_put_((entries.latents.long(),), values, accumulate=True)
    torch.testing.assert_close(entries.sum_by_latent(values), wanted)
    assert isinstance(entries, Entries)


def adam(w, m, v, g, t, rate, config, unit):
    """By hand, in float64."""
    if unit:
        g = g - (g * w).sum(1, keepdims=True) * w
    m = config.adam_beta1 * m + (1 - config.adam_beta1) * g
    v = config.adam_beta2 * v + (1 - config.adam_beta2) * g * g
    decayed = w if unit else (1 - rate * config.weight_decay) * w
    w = decayed - rate * m / (1 - config.adam_beta1**t) / (np.sqrt(v / (1 - config.adam_beta2**t)) + config.adam_epsilon)
    return w / np.linalg.norm(w, axis=1, keepdims=True) if unit else w, m, v


@pytest.mark.parametrize(("beta1", "decay"), [(0, 0), (0.9, 0), (0.9, 0.5), (0, 0.5)])
def test_updates_of_rows_that_come_and_go_are_adams(beta1, decay):
    """Latents that fire in some steps only, sparse and dense steps mixed, against Adam on all rows in every step."""
    config, sae = make("jumprelu", "jumprelu", adam_beta1=beta1, weight_decay=decay)
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.activation.threshold.fill_(2.5)
    optimizer = Optimizer(sae, config)
    names = ("W_dec", "W_enc")
    wanted = {
        n: (dict(sae.named_parameters())[n].detach().double().numpy(), *np.zeros((2, *dict(sae.named_parameters())[n].shape)))
        for n in names
    }
    dead, idle = torch.zeros(F, dtype=torch.bool), 0
    for t in range(1, 13):
        x = torch.randn(12, 16, generator=torch.Generator().manual_seed(t))
        collected = SparseGradients()
        losses = objective_for(sae, config).losses(x, x, dead, 0 if t in (5, 9) else 10**6, collected)
        losses.total(0.1).backward()
        idle += int((losses.codes.frequency == 0).sum())
        kept = {n: None if p.grad is None else p.grad.clone() for n, p in sae.named_parameters()}
        g = gradients(sae, collected)
        for n, p in sae.named_parameters():
            p.grad = kept[n]
        for n in names:
            w, m, v = wanted[n]
            wanted[n] = adam(w, m, v, g[n].numpy(), t, 1e-2, config, n == "W_dec")
        optimizer.update(1e-2, collected)
        for n, p in sae.named_parameters():
            assert p.grad is None
            if n in names:
                np.testing.assert_allclose(p.detach().numpy(), wanted[n][0], rtol=2e-4, atol=2e-5)
    assert idle > F, "latents without a gradient were part of it"


def test_the_way_is_chosen_by_density_and_is_not_given_up_at_once():
    config, sae = make("jumprelu", "jumprelu", log_every=1000)
    loop, (x, _) = Loop(sae, config, History()), batch(sae)

    def after_a_step(density: float) -> bool:
        with torch.no_grad():
            sae.activation.threshold.fill_(float(sae.encoder(x).quantile(1 - density)))
        loop.step(x)
        return loop.sparse

    between = (SPARSE_BELOW + DENSE_ABOVE) / 2
    assert [after_a_step(d) for d in (0.5, between, 0.01, between, 0.2, between, 0.01)] == [False, False, True, True, False, False, True]


def test_without_numba_training_stays_dense(monkeypatch):
    monkeypatch.setattr(select, "_backend_on", lambda device: None)
    config, sae = make("jumprelu", "jumprelu")
    torch.nn.init.constant_(sae.activation.threshold, 3.0)
    loop, (x, _) = Loop(sae, config, History()), batch(sae)
    for _ in range(3):
        loop.step(x)
        assert not loop.sparse and not loop.optimizer.updated


def test_a_step_takes_no_more_threads_than_torch_was_given():
    import numba

    config, sae = make("jumprelu", "jumprelu")
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        Loop(sae, config, History()).step(batch(sae)[0])
        assert numba.get_num_threads() == min(threads, numba.config.NUMBA_NUM_THREADS)
    torch.set_num_threads(before)


def test_a_step_leaves_torch_the_threads_that_it_was_given():
    """In a process of its own: numba launches its threads once, and then gives OpenMP, and so torch, all cores."""
    code = """
import torch
torch.set_num_threads(1)
from scopemill.trainer.sparse.gradients import SparseGradients
from scopemill.trainer.sparse.kernels.select import backend_for
backend_for(torch.zeros(1)).begin_step()
backend_for(torch.zeros(1)).moments(torch.ones(8, 4))
print(torch.get_num_threads())
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert told.stdout == "1\n", told.stderr
