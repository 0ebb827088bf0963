"""TopK and BatchTopK at their edges, and the loss that revives their dead latents."""

import numpy as np
import pytest
import torch
from support.sae_reference import CASES, B

from scopemill.trainer.config.recipe import sae_config
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.registry import initial_sae, objective_for
from scopemill.trainer.sparse.codes import DensePre
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

PRE = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-3.0, -1.0, -2.0, -4.0], [0.5, 4.0, 0.25, 3.0]])


def test_of_each_row_the_k_largest_are_kept_where_they_are_positive():
    assert TopK(4, 2)(PRE).tolist() == [[3, 0, 2, 0], [0, 0, 0, 0], [0, 4, 0, 3]]
    assert TopK(4, 4)(PRE).tolist() == PRE.relu().tolist()


def test_of_a_batch_the_b_times_k_largest_are_kept_wherever_they_are():
    case = CASES["batchtopk"]
    sae = case.sae()
    kept = sae.activation
    kept.width, kept.k = 4, 1
    codes = kept.codes(DensePre(PRE), case.config)
    assert codes.values.tolist() == [[3, 0, 0, 0], [0, 0, 0, 0], [0, 4, 0, 3]], "rows differ in how many they keep"
    assert codes.frequency.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])


@pytest.mark.parametrize("skew", [0.0, 30.0])
def test_of_a_large_batch_too_wherever_a_sample_of_it_points(skew):
    kept = CASES["batchtopk"].sae().activation
    kept.k = 9
    pre = torch.randn(50, 183, generator=torch.Generator().manual_seed(0))
    pre.view(-1)[::61] += skew  # what the sample sees may be unlike the rest
    largest = pre.flatten().topk(50 * 9).values
    codes = kept.codes(DensePre(pre), CASES["batchtopk"].config)
    assert codes.values[codes.values > 0].sort(descending=True).values.tolist() == largest.tolist()


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_a_batch_without_any_positive_value_is_no_trouble(name):
    case = CASES[name]
    sae = case.sae()
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
    losses = objective_for(sae, case.config).losses(*case.rows, case.dead(sae.width))
    losses.total(0.0).backward()
    sae.activation.after_update()
    assert not losses.codes.values.any() and all(p.grad is None or p.grad.isfinite().all() for p in sae.parameters())
    assert name == "topk" or sae.activation.threshold == 0


def test_auxk_takes_the_largest_of_dead_latents_alone():
    dead = torch.tensor([True, False, True, True])
    assert DensePre(PRE).largest(dead, 2, LatentShard(4)).values.tolist() == [[3, 0, 2, 0], [0, 0, 0, 0], [0.5, 0, 0, 3]]
    assert DensePre(PRE).largest(dead, 3, LatentShard(4)).values.tolist() == [[3, 0, 2, 1], [0, 0, 0, 0], [0.5, 0, 0.25, 3]]


def test_auxk_is_absent_while_nothing_is_dead_and_where_nothing_is_left_over():
    case = CASES["topk"]
    sae, (x, y) = case.sae(), case.rows
    nobody, everybody = torch.zeros(sae.width, dtype=torch.bool), torch.ones(sae.width, dtype=torch.bool)
    assert float(objective_for(sae, case.config).losses(x, y, nobody).auxiliary) == 0
    constant = sae.b_dec.detach().expand(B, -1)  # the bias alone rebuilds it, if no latent fires
    with torch.no_grad():
        sae.b_enc.fill_(-1.0)
    losses = objective_for(sae, case.config).losses(constant, constant, everybody)
    assert losses.auxiliary.item() == 0, "zero over zero"
    losses.auxiliary.backward()
    assert all(p.grad is None or not p.grad.isnan().any() for p in sae.parameters())


def test_half_of_d_dead_latents_rebuild_the_error_unless_told():
    case = CASES["topk"]
    sae, (x, y) = case.sae(), case.rows
    dead = torch.ones(sae.width, dtype=torch.bool)
    told, untold = (case.config.model_copy(update={"auxk_latents": n}) for n in (6, None))
    assert case.shape.d_out == 12
    assert (
        objective_for(sae, told).losses(x, y, dead).auxiliary.item() == objective_for(sae, untold).losses(x, y, dead).auxiliary.item() > 0
    )


def test_auxk_moves_dead_latents_towards_the_error_and_no_living_one():
    case = CASES["topk"]
    sae, dead = case.sae(), case.dead(20)
    objective_for(sae, case.config).losses(*case.rows, dead).auxiliary.backward()
    assert not sae.W_dec.grad[~dead].any() and not sae.W_enc.grad[~dead].any()
    assert sae.W_dec.grad[dead].any(dim=1).float().mean() > 0.5


def test_a_latent_that_auxk_revives_fires_again():
    """Latents whose bias is too low for the k largest come back, and without AuxK they stay."""
    alive = []
    for coefficient in (1 / 32, 0.0):
        config = CASES["topk"].config.model_copy(
            update=dict(
                tokens=150 * B, batch_size=B, dead_after_tokens=5 * B, auxk_coefficient=coefficient, learning_rate=0.02, auxk_latents=None
            )
        )
        loop = Loop(initial_sae(config, CASES["topk"].shape, torch.zeros(12)), config, History())
        with torch.no_grad():
            loop.sae.b_enc[:6] = -0.6
        x = CASES["topk"].rows[0].float() / 12**0.5
        while not loop.done:
            loop.step(x)
        alive.append(int((~loop.dead[:6]).sum()))
    assert alive[0] >= 3 > 2 * alive[1]


@pytest.mark.parametrize(("prefixes", "ends"), [((0.25, 0.5, 1.0), (5, 10, 20)), ((0.001, 0.01, 1.0), (1, 20)), ((1.0,), (20,))])
def test_matryoshkas_parts_end_at_shares_of_the_width_and_hold_a_latent_at_least(prefixes, ends):
    config = CASES["matryoshka topk"].config.model_copy(update={"prefixes": prefixes})
    assert objective_for(initial_sae(config, CASES["topk"].shape, torch.zeros(12)), config).ends == ends


def test_a_matryoshka_of_one_part_is_its_activation_alone():
    nested, plain = CASES["matryoshka topk"], CASES["topk"]
    config = nested.config.model_copy(update={"prefixes": (1.0,)})
    one, other = (
        initial_sae(config, nested.shape, torch.zeros(12)).double(),
        initial_sae(plain.config, plain.shape, torch.zeros(12)).double(),
    )
    first, second = (
        objective_for(s, c).losses(*plain.rows, plain.dead(20)).total(0.0).item() for s, c in ((one, config), (other, plain.config))
    )
    assert first == pytest.approx(second, rel=1e-12)


@pytest.mark.parametrize("name", ["skip_transcoder jumprelu", "skip_transcoder batchtopk"])
def test_a_skip_transcoder_starts_at_the_mean_output_and_learns_from_there(name):
    case = CASES[name]
    sae = initial_sae(case.config, case.shape, torch.arange(9.0))
    assert not sae.W_dec.any() and not sae.skip.W_skip.any()
    np.testing.assert_allclose(sae(case.rows[0].float()).detach(), torch.arange(9.0).expand(B, -1))
    tanh = sae_config(case.config.model_dump() | {"penalty": "tanh"})  # which counts norms that are zero here
    objective_for(sae, tanh).losses(*(rows.float() for rows in case.rows), case.dead(20)).total(1.0).backward()
    assert sae.W_dec.grad.any() and sae.skip.W_skip.grad.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in sae.parameters())


def test_layers_of_a_cross_layer_transcoder_read_their_own_input_and_write_to_later_outputs_alone():
    for name, reaches in (
        ("clt relu", {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)}),
        ("per_layer_transcoder relu", {(0, 0), (1, 1), (2, 2)}),
    ):
        case = CASES[name]
        sae, (x, _) = case.sae().requires_grad_(False), case.rows
        found = set()
        for layer, part in enumerate(x.split(case.shape.inputs, dim=1)):
            moved = x.clone()
            moved.split(case.shape.inputs, dim=1)[layer].copy_(part + 1)
            latents = (sae.encode(moved) != sae.encode(x)).any(0).view(3, -1).any(1)
            assert latents.tolist() == [i == layer for i in range(3)]
            changed = (sae(moved) != sae(x)).any(0).split(case.shape.outputs)
            found |= {(layer, out) for out, columns in enumerate(changed) if columns.any()}
        assert found == reaches
