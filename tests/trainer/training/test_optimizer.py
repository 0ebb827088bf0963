"""The optimiser against torch's Adam, and with the unit-norm decoder against Adam written out in numpy."""

import numpy as np
import pytest
import torch
from support.sae_reference import quick

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import initial_sae, objective_for
from scopemill.trainer.sparse.gradients import SparseGradients
from scopemill.trainer.training.optimizer import Optimizer, remove_parallel

D, F = 10, 16
MEAN = torch.linspace(-0.5, 0.5, D)


def make_config(architecture: str, **changes) -> SaeConfig:
    return quick(**dict(architecture=architecture, width=F, sparsity=0.05, bandwidth=0.3, initial_threshold=0.2) | changes)


def initial(config: SaeConfig, dtype: torch.dtype = torch.float32) -> Sae:
    return initial_sae(config, Shape.square(D), MEAN).to(dtype)


def loss_of(sae: Sae, x: torch.Tensor, config: SaeConfig) -> torch.Tensor:
    return objective_for(sae, config).losses(x, x, torch.zeros(F, dtype=torch.bool)).total(0.05)


def batches(steps: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(32, D, generator=generator).to(dtype) for _ in range(steps)]


def rates(steps: int) -> list[float]:
    return [0.01 * (1 + (step % 7)) / 7 for step in range(steps)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    ("beta1", "beta2", "decay"), [(0.0, 0.999, 0.0), (0.0, 0.0, 0.0), (0.9, 0.999, 0.0), (0.5, 0.9, 0.3), (0.0, 0.9, 0.3)]
)
def test_without_a_constraint_it_is_torchs_adamw(dtype, tolerance, beta1, beta2, decay):
    steps, config = 80, make_config("standard", adam_beta1=beta1, adam_beta2=beta2, weight_decay=decay, adam_epsilon=1e-6)
    ours, theirs = (initial(config, dtype) for _ in range(2))
    silenced = torch.arange(F) < 3  # these latents stop firing halfway, so that their rows have no gradient
    optimizer = Optimizer(ours, config)
    groups = [
        {"params": [p for p in theirs.parameters() if (p.ndim == 2) == decays], "weight_decay": decays * decay} for decays in (True, False)
    ]
    adam = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=config.adam_epsilon)
    for step, (x, rate) in enumerate(zip(batches(steps, dtype), rates(steps), strict=True)):
        if step == steps // 2:
            with torch.no_grad():
                for sae in (ours, theirs):
                    sae.b_enc[silenced] = -100.0
        loss_of(ours, x, config).backward()
        assert (ours.W_enc.grad[silenced].abs().sum() == 0) == (step >= steps // 2)
        optimizer.update(rate)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        loss_of(theirs, x, config).backward()
        adam.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=0, atol=tolerance, err_msg=name)
    assert not torch.equal(ours.W_dec, initial(config, dtype).W_dec)


def test_with_a_unit_decoder_the_true_gradient_is_projected_before_adam_and_rows_are_of_unit_norm_after():
    steps, config = 40, make_config("jumprelu")
    ours, mirror = (initial(config, torch.float64) for _ in range(2))
    with torch.no_grad():
        for sae in (ours, mirror):
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)  # unit in float64 too
    optimizer = Optimizer(ours, config)
    moments = {name: np.zeros(p.shape) for name, p in mirror.named_parameters()}
    removed = 0.0
    for step, (x, rate) in enumerate(zip(batches(steps, torch.float64), rates(steps), strict=True), start=1):
        loss_of(ours, x, config).backward()
        optimizer.update(rate)

        parameters = dict(mirror.named_parameters())
        found = torch.autograd.grad(loss_of(mirror, x, config), list(parameters.values()))
        with torch.no_grad():
            for (name, p), g in zip(parameters.items(), found, strict=True):
                value, gradient = p.numpy(), g.numpy().copy()
                if name == "W_dec":
                    for i in range(F):
                        along = float(gradient[i] @ value[i])
                        removed += abs(along)
                        gradient[i] = gradient[i] - along * value[i]
                moments[name] = config.adam_beta2 * moments[name] + (1 - config.adam_beta2) * gradient**2
                unbiased = moments[name] / (1 - config.adam_beta2**step)
                value = value - rate * gradient / (np.sqrt(unbiased) + config.adam_epsilon)
                if name == "W_dec":
                    value = value / np.sqrt((value**2).sum(axis=1, keepdims=True))
                if name == "activation.threshold":
                    value = np.maximum(value, 0)
                p.copy_(torch.from_numpy(value))
        np.testing.assert_allclose(ours.W_dec.detach().norm(dim=1).numpy(), 1, rtol=1e-12)
    assert removed > 0.1, "there was something to project away"
    for (name, p), q in zip(ours.named_parameters(), mirror.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=0, atol=1e-11, err_msg=name)


def test_the_second_moment_of_the_decoder_never_sees_the_parallel_part():
    config = make_config("jumprelu")
    sae = initial(config)
    optimizer = Optimizer(sae, config)
    for p in sae.parameters():
        p.grad = torch.zeros_like(p)
    sae.W_dec.grad = 3 * sae.W_dec.detach().clone()  # wholly along the rows
    before = sae.W_dec.detach().clone()
    optimizer.update(1e-3)
    assert optimizer.second_moments["W_dec"].max() < 1e-15
    np.testing.assert_allclose(sae.W_dec.detach().numpy(), before.numpy(), atol=2e-3)


def test_only_second_moments_are_stored():
    config = make_config("jumprelu")
    sae = initial(config)
    optimizer = Optimizer(sae, config)
    loss_of(sae, batches(1, torch.float32)[0], config).backward()
    optimizer.update(1e-3)
    held = [t for value in vars(optimizer).values() for t in (value.values() if isinstance(value, dict) else [value]) if torch.is_tensor(t)]
    rows = sum(len(p) for p in sae.parameters() if p.ndim == 2)  # since which update each row of weights has had no gradient
    assert sum(t.numel() for t in held) == sum(p.numel() for p in sae.parameters()) + rows
    assert optimizer.second_moments.keys() == dict(sae.named_parameters()).keys()


def test_there_is_no_memory_of_earlier_directions():
    config = make_config("standard")
    sae = initial(config)
    optimizer = Optimizer(sae, config)
    directions = []
    for sign in (1.0, 1.0, -1.0):
        before = sae.b_enc.detach().clone()
        for p in sae.parameters():
            p.grad = torch.full_like(p, sign)
        optimizer.update(0.01)
        directions.append((sae.b_enc.detach() - before).sign().unique().tolist())
    assert directions == [[-1.0], [-1.0], [1.0]]


def test_the_first_update_is_the_learning_rate_against_the_sign():
    config = make_config("standard")
    sae = initial(config)
    before = sae.b_dec.detach().clone()
    for p in sae.parameters():
        p.grad = torch.full_like(p, 1e-3)
    Optimizer(sae, config).update(0.01)
    np.testing.assert_allclose((sae.b_dec.detach() - before).numpy(), -0.01, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "gated"])
@pytest.mark.parametrize("max_entries", [0, 10**6])
def test_tied_weights_are_one_matrix_with_the_gradients_of_both_uses(architecture, max_entries):
    config = make_config(
        architecture, tied_weights=True, weight_decay=0.1, adam_epsilon=1e-4, **({"sparsity": 4.0} if architecture == "topk" else {})
    )
    sae = initial(config)
    optimizer, x, dead = Optimizer(sae, config), batches(1, torch.float32)[0], torch.zeros(F, dtype=torch.bool)
    assert torch.equal(sae.W_enc, sae.W_dec) and "W_enc" not in optimizer.second_moments
    objective_for(sae, config).losses(x, x, dead).total(0.05).backward()
    gradient, before = (sae.W_enc.grad + sae.W_dec.grad).double(), sae.W_dec.detach().double()
    sae.zero_grad()
    collected = SparseGradients()
    objective_for(sae, config).losses(x, x, dead, max_entries, collected).total(0.05).backward()
    optimizer.update(0.01, collected)
    wanted = (1 - 0.01 * 0.1) * before - 0.01 * gradient / (gradient.abs() + config.adam_epsilon)
    np.testing.assert_allclose(sae.W_dec.detach().numpy(), wanted.numpy(), atol=2e-4)
    assert torch.equal(sae.W_enc, sae.W_dec)


def test_gradients_are_cleared():
    config = make_config("jumprelu")
    sae = initial(config)
    loss_of(sae, batches(1, torch.float32)[0], config).backward()
    Optimizer(sae, config).update(1e-3)
    assert all(p.grad is None for p in sae.parameters())


def test_remove_parallel_leaves_the_orthogonal_part():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(F, D, generator=generator, dtype=torch.float64)
    rows /= rows.norm(dim=1, keepdim=True)
    along = torch.randn(F, 1, generator=generator, dtype=torch.float64)
    across = torch.randn(F, D, generator=generator, dtype=torch.float64)
    across -= torch.stack([row * (row @ part) for row, part in zip(rows, across, strict=True)])
    gradient = across + along * rows
    remove_parallel(gradient, rows)
    np.testing.assert_allclose(gradient.numpy(), across.numpy(), atol=1e-14)
    assert (gradient * rows).sum(dim=1).abs().max() < 1e-14


@pytest.mark.parametrize(("limit", "clipped"), [(1e-3, True), (1e6, False)])
def test_clipping_bounds_the_norm_of_what_is_left_after_the_projection(limit, clipped):
    """With beta2 = 0 and a large epsilon the update is the gradient itself, times rate / epsilon."""
    config = make_config("jumprelu", clip_gradient=limit, adam_beta2=0.0, adam_epsilon=1e6)
    sae, free = initial(config, torch.float64), initial(config, torch.float64)
    with torch.no_grad():  # unit in float64 too
        for each in (sae, free):
            each.W_dec /= each.W_dec.norm(dim=1, keepdim=True)
    x = batches(1, torch.float64)[0]
    loss_of(free, x, config).backward()
    remove_parallel(free.W_dec.grad, free.W_dec.detach())
    norm = float(torch.cat([p.grad.flatten() for p in free.parameters()]).norm())
    before = {name: p.detach().clone() for name, p in sae.named_parameters() if name != "W_dec"}
    loss_of(sae, x, config).backward()
    Optimizer(sae, config).update(1e6)
    share = limit / norm if clipped else 1.0
    assert (norm > limit) == clipped
    for name, p in free.named_parameters():
        if name in before and name != "activation.threshold":
            moved = dict(sae.named_parameters())[name].detach() - before[name]
            np.testing.assert_allclose(moved.numpy(), (-share * p.grad / (1 + share * p.grad.abs() / 1e6)).numpy(), rtol=1e-4, atol=1e-12)


def test_a_parameter_without_a_gradient_stays_and_its_moment_fades():
    config = make_config("jumprelu")
    sae = initial(config)
    optimizer = Optimizer(sae, config)
    for v in optimizer.second_moments.values():
        v.fill_(1.0)
    for name, p in sae.named_parameters():
        p.grad = None if name == "b_enc" else torch.zeros_like(p)
    before = sae.b_enc.detach().clone()
    optimizer.update(1.0)
    assert torch.equal(sae.b_enc, before)
    np.testing.assert_allclose(optimizer.second_moments["b_enc"].numpy(), config.adam_beta2)


@pytest.mark.parametrize(
    ("architecture", "options", "unit"),
    [
        ("standard", {}, False), ("gated", {}, True), ("jumprelu", {}, True), ("jumprelu", {"penalty": "tanh"}, False),
        ("jumprelu", {"penalty": "target_l0"}, True), ("topk", {"sparsity": 4.0}, True), ("matryoshka", {"sparsity": 4.0}, True),
        ("skip", {}, True),
    ],
)  # fmt: skip
def test_decoder_rows_stay_at_unit_norm_unless_the_penalty_counts_their_norms(architecture, options, unit):
    config = make_config(architecture, **options)
    sae = initial(config)
    optimizer = Optimizer(sae, config)
    for x in batches(5, torch.float32):
        loss_of(sae, x, config).backward()
        optimizer.update(0.01)
    assert np.allclose(sae.W_dec.detach().norm(dim=1).numpy(), 1, atol=1e-5) == unit
