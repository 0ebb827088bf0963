"""Mistakes that were found in public code and guides: each is written out here, and must be told from what we do.

Those that are not the trainer's have their tests where they belong: sites, and widths that the model itself is asked for, in
harvester/test_language_model.py, scale and mean from a sample of the whole corpus in harvester/test_harvest.py, one read for
all trainers in activation_server/test_server.py, FVU and constant biases with a language model in evaluator/test_fidelity.py.
"""

import numpy as np
import pytest
import torch
from support.sae_reference import CASES, B, Reference

from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.trainer import load_sae
from scopemill.trainer.config.recipe import sae_config
from scopemill.trainer.config.templates import load_template
from scopemill.trainer.formats import FinishedSae, write_finished
from scopemill.trainer.sae.activations.relu import ReLU
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import objective_for
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.training.optimizer import Optimizer

CASE = CASES["jumprelu l0"]
NONE_DEAD = torch.zeros(20, dtype=torch.bool)


def threshold_gradient() -> np.ndarray:
    sae, (x, y) = CASE.sae(), CASE.rows
    objective_for(sae, CASE.config).losses(x, y, NONE_DEAD).total(CASE.config.coefficient).backward()
    return sae.activation.threshold.grad.numpy()


def test_a_mean_over_elements():
    """Its reconstruction gradients are d times too small beside the same lambda and bandwidth."""
    through_latents, through_firing = Reference(CASE, CASE.sae()).pseudo_gradients()
    right, wrong = through_latents + through_firing, through_latents / CASE.shape.d_out + through_firing
    np.testing.assert_allclose(threshold_gradient(), right, rtol=1e-6)
    assert not np.isclose(threshold_gradient(), wrong, rtol=0.05).any()


def test_an_l0_step_fed_with_latents_instead_of_pre_activations():
    """A latent below its threshold is zero, outside the window: half of the gradient would be lost."""
    reference = Reference(CASE, CASE.sae())
    threshold, bandwidth = reference.p["activation.threshold"], CASE.config.bandwidth
    wrong = -(np.abs((reference.f - threshold) / bandwidth) < 0.5).mean(axis=0) / bandwidth
    sae, (x, y) = CASE.sae(), CASE.rows
    objective_for(sae, CASE.config).losses(x, y, NONE_DEAD).sparsity.backward()
    found = sae.activation.threshold.grad.numpy()
    np.testing.assert_allclose(found, -reference.kernel.mean(axis=0) / bandwidth, rtol=1e-9)
    assert found.sum() < 1.5 * wrong.sum(), "both are negative, and the true one counts the lower half too"


def test_a_count_of_latents_as_a_loss():
    """(f != 0).float() has the right value and no gradient at all."""
    sae, (x, y) = CASE.sae(), CASE.rows
    losses = objective_for(sae, CASE.config).losses(x, y, NONE_DEAD)
    wrong = (losses.codes.values != 0).double().sum(1).mean()
    assert wrong.item() == pytest.approx(losses.sparsity.item()) and not wrong.requires_grad
    losses.sparsity.backward()
    assert (sae.activation.threshold.grad < 0).all()


def history_of(x: torch.Tensor, shift: float = 0.0):
    """The history's row, and x and what an SAE rebuilt of it, whose decoder bias is off by ``shift``."""
    sae = CASE.sae(torch.float32)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0) + shift)
        rebuilt = sae(x).double().numpy()
    loop = Loop(sae, CASE.config.model_copy(update=dict(tokens=B, batch_size=B, learning_rate=1e-30)), History())
    loop.step(x)
    return loop.history.rows[0], x.double().numpy(), rebuilt


def test_a_variance_over_all_elements():
    """torch.var(x) is around one scalar mean: where columns have means of their own it hides most of the error."""
    x = CASE.rows[0].float() + 30 * torch.randn(CASE.shape.d_in, generator=torch.Generator().manual_seed(0))
    row, x, rebuilt = history_of(x)
    error = ((x - rebuilt) ** 2).sum()
    assert row.fvu == pytest.approx(error / ((x - x.mean(axis=0)) ** 2).sum(), rel=1e-3)
    assert error / (x.size * x.var()) < 0.05 * row.fvu and error / (x**2).sum() < 0.05 * row.fvu


def test_explained_variance_that_hides_a_constant_bias():
    """1 - Var(x - x_hat) / Var(x) does not change when everything that is rebuilt is off by a constant."""
    x = CASE.rows[0].float()
    values = []
    for shift in (0.0, 5.0):
        row, rows, rebuilt = history_of(x, shift)
        if shift:  # the same latents, so that a constant is all that differs
            rebuilt = values[0][2] + shift
        residual = rows - rebuilt
        wrong = ((residual - residual.mean(axis=0)) ** 2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum()
        values.append((row.fvu, wrong, rebuilt))
    assert values[1][1] == pytest.approx(values[0][1]) and values[1][0] > values[0][0] + 10


def test_steps_counted_in_sequences():
    config = sae_config(load_template("gemma-scope").fields | dict(width=16384, sparsity=6e-4))
    assert config.steps == 976_563 and config.steps != config.tokens // (config.batch_size * 1024)


def test_the_tap_of_attention_and_mlp():
    """hook_result is after W_O and hook_post is inside the MLP, d_mlp wide: neither is a site."""
    assert Hook(3, "attn_z").name == "blocks.3.attn.hook_z" and Hook(3, "mlp_out").name == "blocks.3.hook_mlp_out"
    for wrong in ("blocks.3.attn.hook_result", "blocks.3.mlp.hook_post"):
        with pytest.raises(InputError, match="not known"):
            Hook.parse(wrong)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_a_projection_of_scaled_gradients(scale):
    """What Adam sees is the true gradient of the loss without its part along the decoder's rows, in its true size; a loss that is
    scaled, as for half precision, would be seen."""
    sae = CASE.sae()
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    rows, gradient = sae.W_dec.detach().numpy(), Reference(CASE, sae).gradients["W_dec"]
    projected = gradient - np.einsum("fd,fd->f", gradient, rows)[:, None] * rows
    optimizer = Optimizer(sae, CASE.config)
    (scale * objective_for(sae, CASE.config).losses(*CASE.rows, NONE_DEAD).total(CASE.config.coefficient)).backward()
    optimizer.update(0.01)
    seen = np.sqrt(optimizer.second_moments["W_dec"].numpy() / (1 - CASE.config.adam_beta2))
    assert np.allclose(seen, np.abs(projected), rtol=1e-5, atol=1e-7) == (scale == 1)
    assert not np.allclose(seen, scale * np.abs(gradient), rtol=0.05), "there was something to project away"


def test_a_scale_taken_from_the_rows_that_come():
    """The scale belongs to the dataset: rows twice as large are seen as twice as large, before a resume and after."""
    sae, x = CASE.sae().requires_grad_(False), CASE.rows[0]
    done = fold(sae, [4.0], [4.0]).requires_grad_(False)
    np.testing.assert_allclose(done(4 * 2 * x), 4 * sae(2 * x), rtol=1e-5, atol=1e-5)
    assert not np.allclose(done(4 * 2 * x), 2 * done(4 * x), rtol=0.05)


def test_a_batchtopk_that_loads_as_a_plain_relu(tmp_path):
    case = CASES["batchtopk"]
    sae, x = case.sae(torch.float32), case.rows[0].float()
    for _ in range(3):
        objective_for(sae, case.config).losses(x, x, case.dead(sae.width))
    sae.activation.after_update()
    hooks = ("blocks.0.hook_resid_post",)
    write_finished(str(tmp_path), "saelens", FinishedSae(fold(sae.requires_grad_(False), [2.0], [2.0]), hooks, hooks, "m"))
    loaded = load_sae(str(tmp_path))
    wrong = Sae(loaded.shape, loaded.width, ReLU(loaded.width)).requires_grad_(False)
    wrong.load_state_dict({name: p for name, p in loaded.state_dict().items() if not name.startswith("activation")})
    l0, wrong_l0 = ((each.encode(2 * x) > 0).sum(1).double().mean().item() for each in (loaded, wrong))
    assert l0 == pytest.approx(case.k, rel=0.05) and wrong_l0 > 1.5 * case.k
