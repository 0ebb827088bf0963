"""Finished SAEs on raw activations are the trained ones on scaled activations; and training can start from a finished one."""

import numpy as np
import pytest
import torch
from support.sae_reference import CASES, ONE, B, Case, Reference, quick

from scopemill.proto.errors import InputError
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Port, Shape, Wiring
from scopemill.trainer.formats import FinishedSae, read_start, write_finished
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae, objective_for
from scopemill.trainer.sae.start import started_from as begun_from

NORMALIZATIONS = ("scale", "sqrt_d", "none", "layer_norm")
EVERY = pytest.mark.parametrize("name", CASES)


def wired(shape: Shape) -> Wiring:
    """Every hook has a scale of its own, from a seventh to 30."""
    inputs = tuple(Port(f"blocks.{i}.mlp.hook_in", d, 30.0 / 3**i) for i, d in enumerate(shape.inputs))
    targets = tuple(Port(f"blocks.{i}.hook_mlp_out", d, 1 / 7 + 2 * i) for i, d in enumerate(shape.outputs))
    return Wiring(inputs, () if shape.autoencoder else targets)


def units(ports: tuple[Port, ...], config: SaeConfig) -> torch.Tensor:
    """By how much raw activations are larger than what an SAE sees, column by column."""
    factor = {"scale": lambda p: p.scale, "sqrt_d": lambda p: p.scale / p.d**0.5}.get(config.normalization, lambda p: 1.0)
    return torch.tensor([factor(p) for p in ports for _ in range(p.d)], dtype=torch.float64)


def trained(case: Case) -> Sae:
    """As after some training: also what no gradient trains is there."""
    sae = case.sae()
    if case.config.latents == "batchtopk":
        sae.activation.threshold.fill_(0.6)
    return sae.requires_grad_(False)


def finish(sae: Sae, wiring: Wiring, config: SaeConfig) -> Sae:
    return fold(sae, wiring.input_units(config), wiring.output_units(config)).requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "normalization"), [(n, kind) for n in CASES for kind in NORMALIZATIONS if kind != "layer_norm" or CASES[n].shape == ONE]
)
def test_finished_on_raw_activations_is_training_on_scaled_ones(name, normalization):
    case = CASES[name]
    config, wiring = case.config.model_copy(update={"normalization": normalization}), wired(case.shape)
    sae = trained(case)
    sae.layer_norm = normalization == "layer_norm"
    done = finish(sae, wiring, config)
    assert not done.centred and done.layer_norm == sae.layer_norm and done.shape == sae.shape
    seen, _ = case.rows
    latents, rebuilt = sae.reconstruct(seen)
    found_latents, found = done.reconstruct(seen * units(wiring.inputs, config))
    assert (latents > 0).double().mean() > 0.1
    np.testing.assert_allclose(found, rebuilt * units(wiring.outputs, config), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_latents, latents * wiring.input_units(config)[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(done.encode(seen * units(wiring.inputs, config)), found_latents)
    assert torch.equal(done(seen * units(wiring.inputs, config)), found)


@EVERY
def test_what_a_finished_sae_rebuilds_is_the_published_formula_on_raw_activations(name):
    case = CASES[name]
    config, wiring = case.config, wired(case.shape)
    sae, reference = trained(case), Reference(case, case.sae())
    if config.latents == "batchtopk":  # at inference a latent does not compete with the rows beside it
        reference.on = reference.pre(reference.p) > 0.6
    raw = case.rows[0] * units(wiring.inputs, config)
    expected = reference.rebuilt(reference.p, reference.latents(reference.p))
    if sae.layer_norm:
        deviation = case.rows[0].numpy().std(axis=1, ddof=1, keepdims=True)
        expected = expected * deviation + case.rows[0].numpy().mean(axis=1, keepdims=True)
    np.testing.assert_allclose(finish(sae, wiring, config)(raw), expected * units(wiring.outputs, config).numpy(), rtol=1e-5, atol=1e-5)


def test_folding_is_gemma_scopes_with_one_scale():
    """b_enc' = C (b_enc - W_enc b_dec), b_dec' = C b_dec, theta' = C theta, and the weights as they are."""
    sae = trained(CASES["jumprelu l0"])
    done = fold(sae, [37.25], [37.25]).requires_grad_(False)
    assert torch.equal(done.W_enc, sae.W_enc) and torch.equal(done.W_dec, sae.W_dec)
    np.testing.assert_allclose(done.b_enc, 37.25 * (sae.b_enc - sae.W_enc @ sae.b_dec), rtol=1e-12)
    np.testing.assert_allclose(done.b_dec, 37.25 * sae.b_dec, rtol=1e-12)
    np.testing.assert_allclose(done.activation.threshold, 37.25 * sae.activation.threshold, rtol=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_what_an_sae_sees_is_of_the_norm_that_is_asked_for(normalization):
    config, port = quick(normalization=normalization, initial_decoder_bias="zero"), Port("blocks.0.hook_resid_post", 16, 37.25)
    raw = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    raw *= port.scale / raw.square().sum(1).mean().sqrt()  # so that E||raw / C||^2 = 1
    seen = (raw / port.unit(config)).square().sum(1).mean().item()
    assert seen == pytest.approx({"scale": 1, "sqrt_d": 16}.get(normalization, 37.25**2), rel=1e-5)


def test_layer_norm_sees_the_same_whatever_the_scale_and_offset_and_gives_both_back():
    sae, (x, _) = trained(CASES["jumprelu layer norm"]), CASES["jumprelu layer norm"].rows
    moved = 40.0 * x - 300.0
    latents, rebuilt = sae.reconstruct(x)
    np.testing.assert_allclose(sae.encode(moved), latents, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae(moved), 40.0 * rebuilt - 300.0, rtol=1e-4, atol=1e-2)
    perfect = trained(CASES["jumprelu layer norm"])
    for p in perfect.parameters():
        p.zero_()
    np.testing.assert_allclose(perfect(moved), moved.mean(1, keepdim=True).expand_as(moved), rtol=1e-12)  # nothing fires: the mean is left


def test_batchtopks_threshold_is_the_mean_of_the_smallest_values_of_the_last_twentieth_of_the_batches():
    case = CASES["batchtopk"]
    sae, x = case.sae(), case.rows[0]
    smallest = []
    for k in range(1, 6):
        rows = x * k
        codes = objective_for(sae, case.config).losses(rows, rows, case.dead(sae.width)).codes
        assert int((codes.values > 0).sum()) == case.k * B
        smallest.append(codes.values[codes.values > 0].min().item())
        sae.activation.after_update()
        assert sae.activation.threshold.item() == pytest.approx(smallest[-1], rel=1e-6), "a twentieth of so few batches is the last one"
    for batches, averaged in ((199, 10), (10**6, 1000)):  # at most a thousand
        sae.activation.batches.fill_(batches)
        before = sae.activation.threshold.item()
        objective_for(sae, case.config).losses(x, x, case.dead(sae.width))
        sae.activation.after_update()
        assert sae.activation.threshold.item() == pytest.approx(before + (smallest[0] - before) / averaged, rel=1e-5)


def test_a_finished_batchtopk_has_about_the_l0_that_was_trained():
    case = CASES["batchtopk"]
    sae = case.sae()
    for seed in range(30):
        x = torch.randn(B, ONE.d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        objective_for(sae, case.config).losses(x, x, case.dead(sae.width))
    sae.activation.after_update()
    done = fold(sae.requires_grad_(False), [3.0], [3.0])
    x = torch.randn(5000, ONE.d_in, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    assert done.activation.name == "jumprelu"
    assert (done.encode(3.0 * x) > 0).sum(1).double().mean().item() == pytest.approx(case.k, rel=0.05)


def started_from(config: SaeConfig, wiring: Wiring) -> Sae:
    return begun_from(config, wiring, read_start(str(config.initial_sae)))


def finished_in(folder, case: Case, sae: Sae, wiring: Wiring, config: SaeConfig) -> SaeConfig:
    """Write the finished SAE; the configuration that starts from it."""
    inputs, outputs = (tuple(p.hook for p in ports) for ports in (wiring.inputs, wiring.outputs))
    write_finished(str(folder), "saelens", FinishedSae(finish(sae, wiring, config), inputs, outputs, "m"))
    return config.model_copy(update={"initial_sae": str(folder)})


@pytest.mark.parametrize("name", [n for n in CASES if "batchtopk" not in n])
def test_training_starts_with_the_function_of_the_finished_sae_in_its_own_units(tmp_path, name):
    """Also where another decoder norm than training's came in: JumpReLU and ReLU latents bear that, TopK's order would not."""
    case = CASES[name]
    wiring, sae = wired(case.shape), trained(case)
    if case.k and sae.keeps_unit_decoder(case.config):
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    started = started_from(finished_in(tmp_path, case, sae, wiring, case.config), wiring)
    assert type(started) is type(sae) and started.centred == sae.centred and all(p.requires_grad for p in started.parameters())
    seen = case.rows[0]
    np.testing.assert_allclose(started.double()(seen).detach(), sae(seen), rtol=2e-4, atol=2e-4)
    if sae.keeps_unit_decoder(case.config):
        np.testing.assert_allclose(started.W_dec.detach().norm(dim=1), 1, rtol=1e-6)
    else:
        np.testing.assert_allclose(started.encode(seen).detach(), sae.encode(seen), rtol=2e-4, atol=2e-4)


def test_a_start_with_as_many_latents_as_columns_keeps_its_decoders_bias(tmp_path):
    """Both are vectors of one length, and only one of them is counted in the latents' units."""
    shape = Shape.square(20)
    case = Case("jumprelu", shape)
    sae = case.sae().requires_grad_(False)
    sae.centred = True
    started = started_from(finished_in(tmp_path, case, sae, wired(shape), case.config), wired(shape))
    np.testing.assert_allclose(started.b_dec.detach(), sae.b_dec, rtol=1e-5)
    np.testing.assert_allclose(started.double()(case.rows[0]).detach(), sae(case.rows[0]), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("normalization", ["sqrt_d", "none"])
def test_a_start_may_see_other_units_than_the_one_it_starts_from(tmp_path, normalization):
    case = CASES["jumprelu l0"]
    wiring, sae = wired(case.shape), trained(case)
    config = finished_in(tmp_path, case, sae, wiring, case.config).model_copy(update={"normalization": normalization})
    raw = case.rows[0] * units(wiring.inputs, case.config)
    seen = raw / units(wiring.inputs, config)
    found = started_from(config, wiring).double()(seen).detach() * units(wiring.outputs, config)
    np.testing.assert_allclose(found, sae(case.rows[0]) * units(wiring.outputs, case.config), rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(width=21), "has 20 latents, and train.widths asks for 21"),
        (dict(architecture="standard"), "activation.threshold"),
        (dict(architecture="gated"), "activation.b_gate"),
        (dict(architecture="skip"), "skip.W_down"),
        (dict(normalization="layer_norm", initial_decoder_bias="zero"), "layer_norm"),
        (dict(architecture="batchtopk", sparsity=4.0), "and a finished batchtopk has one"),
        (dict(architecture="topk", sparsity=4.0), "but a jumprelu with jumprelu latents"),
    ],
)
def test_a_start_from_another_kind_or_shape_is_refused_in_one_sentence(tmp_path, changes, words):
    case = CASES["jumprelu l0"]
    finished_in(tmp_path, case, trained(case), wired(ONE), case.config)
    with pytest.raises(InputError) as caught:
        started_from(quick(initial_sae=str(tmp_path), **changes), wired(ONE))
    assert "train.initial_sae" in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in CASES if "batchtopk" in n])
def test_a_finished_batchtopk_is_gone_on_with(tmp_path, name):
    """It is a JumpReLU with one threshold, which becomes the running threshold again, in the units of other rows too."""
    case = CASES[name]
    sae = trained(case)
    if sae.keeps_unit_decoder(case.config):
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    wiring = wired(case.shape)
    config = finished_in(tmp_path, case, sae, wiring, case.config)
    started = started_from(config, wiring).double()
    seen = case.rows[0]
    assert started.activation.name == "batchtopk" and started.activation.threshold.item() == pytest.approx(0.6, rel=1e-5)
    np.testing.assert_allclose(started(seen).detach(), sae(seen), rtol=2e-4, atol=2e-4)
    if len(case.shape.inputs) == 1:
        other = Wiring(*(tuple(Port(p.hook, p.d, 3.7 * p.scale) for p in ports) for ports in (wiring.inputs, wiring.targets)))
        moved = started_from(config, other).double()
        np.testing.assert_allclose(moved(seen / 3.7).detach() * 3.7, sae(seen), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_a_start_that_would_be_another_function_is_refused(tmp_path, name):
    """Scaling unequal decoder rows to unit norm changes which latents are the largest."""
    case = CASES[name]
    sae = trained(case)
    sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.W_dec[3] *= 1.5
    config = finished_in(tmp_path, case, sae, wired(ONE), case.config)
    with pytest.raises(InputError, match="train.initial_sae: .* has decoder rows of norms from 1 to 1.5"):
        started_from(config, wired(ONE))
    sae.W_dec *= 1 / sae.W_dec.norm(dim=1, keepdim=True) * 0.8
    config = finished_in(tmp_path, case, sae, wired(ONE), case.config)
    started, seen = started_from(config, wired(ONE)), case.rows[0]
    np.testing.assert_allclose(started.double()(seen).detach(), sae(seen), rtol=2e-4, atol=2e-4)


def test_a_start_that_is_missing_or_of_other_rows_is_told_by_its_field(tmp_path):
    with pytest.raises(InputError, match=f"train.initial_sae: {tmp_path} is not a finished SAE"):
        started_from(quick(initial_sae=str(tmp_path)), wired(ONE))
    case = CASES["jumprelu l0"]
    config = finished_in(tmp_path, case, trained(case), wired(ONE), case.config)
    wider = Shape.square(ONE.d_in + 1)
    with pytest.raises(InputError, match=f"reads rows of width {ONE.d_in} .* hooks have {ONE.d_in + 1}"):
        started_from(config, wired(wider))


def test_an_sae_without_an_update_is_the_same_when_finished_and_started_again(tmp_path):
    for name in ("standard", "skip_transcoder jumprelu", "clt relu"):
        case = CASES[name]
        sae = initial_sae(case.config, case.shape, torch.zeros(case.shape.d_out)).requires_grad_(False)
        started = started_from(finished_in(tmp_path / name, case, sae, wired(case.shape), case.config), wired(case.shape))
        for (parameter, p), q in zip(started.named_parameters(), sae.parameters(), strict=True):
            np.testing.assert_allclose(p.detach(), q, rtol=1e-5, atol=1e-6, err_msg=f"{name} {parameter}")
