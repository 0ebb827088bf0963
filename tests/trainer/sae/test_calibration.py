"""The start from the first batch: its reconstruction is the best that a factor of the encoder can give, whatever the architecture."""

import numpy as np
import pytest
import torch
from support.sae_reference import ONE, quick
from support.sparse_kinds import KINDS, shape_of
from support.sparse_world import SparseWorld
from support.wide import on_ranks

from scopemill.trainer.sae.calibration import calibrate
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

WIDTH = 64
WORLD = SparseWorld(d=16, directions=48, active=3.0)


def config_of(word: str, activation: str, **changes):
    sparsity = 6 if activation in ("topk", "batchtopk") else 0.01
    fields = {"width": WIDTH, "sparsity": sparsity, "batch_size": 256, "initial_scale": "least_squares"} | changes
    return quick(architecture=word, activation=activation, **fields)


def rows_of(word: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that are sparse sums, and for paired kinds targets that a linear map does not give."""
    shape = shape_of(word)
    if shape.autoencoder:
        x = torch.cat([WORLD.batch(k, 256) for k in range(2)], dim=1)[:, : shape.d_in]
        return x, x
    x, y = (torch.cat(parts, dim=1) for parts in zip(*(WORLD.computed(k, 256) for k in range(3)), strict=True))
    return x[:, : shape.d_in], y[:, : shape.d_out]


def first_reconstruction(sae, config, x: torch.Tensor, factor: float = 1.0) -> np.ndarray:
    """What the SAE as training has it makes of x if its pre-activations are ``factor`` times as large, in float64 numpy, bias included."""
    with torch.no_grad():
        codes = sae.activation.preview(factor * sae.encoder(x), config)
        skipped = sae.skip(x) if sae.skip else 0
        return (sae.decode_no_bias(codes) + sae.b_dec + skipped).double().numpy()


def error_of(reconstruction: np.ndarray, y: torch.Tensor) -> float:
    target = y.double().numpy()
    return ((target - reconstruction) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()


@pytest.mark.parametrize(("word", "activation"), KINDS)
def test_the_first_reconstruction_is_best_in_scale(word, activation):
    config, (x, y) = config_of(word, activation, initial_decoder_bias="mean"), rows_of(word)
    sae = initial_sae(config, shape_of(word), y.mean(0))
    calibrate(sae, config, x, y)
    fvu = error_of(first_reconstruction(sae, config, x), y)
    assert fvu < 1
    others = [error_of(first_reconstruction(sae, config, x, factor), y) for factor in np.geomspace(0.5, 2, 41)]
    # A fixed threshold makes the error a rough function of the scale, with the least-squares scale at one of its dips.
    assert fvu <= min(others) + (0.02 if activation == "jumprelu" else 1e-6)


@pytest.mark.parametrize("word", [word for word, activation in KINDS if activation == "jumprelu"])
@pytest.mark.parametrize("threshold", [0.0, 0.03, 0.1, 0.3])
def test_the_first_reconstruction_is_of_use_whatever_the_thresholds(word, threshold):
    """A scale at which half of the latents fire asks for one at which none does, and that one for the former."""
    config, (x, y) = config_of(word, "jumprelu", initial_decoder_bias="mean", initial_threshold=threshold, width=256), rows_of(word)
    sae = initial_sae(config, shape_of(word), y.mean(0))
    calibrate(sae, config, x, y)
    assert error_of(first_reconstruction(sae, config, x), y) < 1


@pytest.mark.parametrize("activation", ["jumprelu", "topk", "relu"])
def test_tied_weights_start_at_the_best_scale_of_both(activation):
    config, (x, y) = config_of("crosscoder", activation, tied_weights=True, initial_threshold=0.0), rows_of("crosscoder")
    sae = initial_sae(config, shape_of("crosscoder"), y.mean(0))
    calibrate(sae, config, x, y)
    assert torch.equal(sae.W_enc, sae.W_dec)

    def error(factor: float) -> float:
        with torch.no_grad():
            codes = sae.activation.preview(factor * sae.encoder(x), config)
            return error_of((factor * sae.decode_no_bias(codes) + sae.b_dec).double().numpy(), y)

    assert error(1.0) < 1 and error(1.0) <= min(map(error, np.geomspace(0.5, 2, 41))) + 1e-6


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk"])
def test_the_factor_is_that_of_least_squares(activation):
    """Where no threshold depends on the scale, the factor is <y, y^> / <y^, y^> of the published start."""
    published, config = (config_of("skip", activation, initial_scale=scale) for scale in ("as_published", "least_squares"))
    x, y = rows_of("skip")
    before, after = (initial_sae(one, shape_of("skip"), y.mean(0)) for one in (published, config))
    calibrate(before, published, x, y)
    calibrate(after, config, x, y)
    bias = before.b_dec.detach().double().numpy()
    rebuilt, target = first_reconstruction(before, published, x) - bias, y.double().numpy() - bias
    factor = (target * rebuilt).sum() / (rebuilt**2).sum()
    torch.testing.assert_close(after.W_enc, before.W_enc * factor, rtol=1e-5, atol=0)
    assert torch.equal(after.W_dec, before.W_dec)


def test_the_published_start_is_left_as_it_is():
    config, (x, y) = config_of("jumprelu", "jumprelu", initial_scale="as_published"), rows_of("jumprelu")
    sae, untouched = (initial_sae(config, shape_of("jumprelu"), y.mean(0)) for _ in range(2))
    calibrate(sae, config, x, y)
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), untouched.state_dict().values(), strict=True))


def test_a_finished_sae_to_start_from_keeps_its_scale():
    config, (x, y) = config_of("topk", "topk", initial_sae="somewhere"), rows_of("topk")
    sae = initial_sae(config, shape_of("topk"), y.mean(0))
    before = sae.W_enc.clone()
    calibrate(sae, config, x, y)
    assert torch.equal(sae.W_enc, before)


def test_thresholds_from_data_keep_their_choice_at_the_new_scale():
    config, (x, y) = config_of("jumprelu", "jumprelu", initial_l0=5.0), rows_of("jumprelu")
    sae = initial_sae(config, shape_of("jumprelu"), y.mean(0))
    calibrate(sae, config, x, y)
    with torch.no_grad():
        l0 = sae.activation.preview(sae.encoder(x), config).l0.item()
    assert l0 == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize(("word", "activation"), [("jumprelu", "jumprelu"), ("batchtopk", "batchtopk"), ("transcoder", "topk")])
def test_ranks_of_a_sharded_sae_agree_on_the_scale(word, activation):
    config, (x, y) = config_of(word, activation), rows_of(word)
    whole = initial_sae(config, shape_of(word), y.mean(0))
    calibrate(whole, config, x, y)

    def start(shard):
        sae = initial_sae(config, shape_of(word), y.mean(0), shard)
        calibrate(sae, config, x, y)
        return sae.W_enc.detach(), sae.W_dec.detach()

    encoders, decoders = zip(*on_ranks(2, WIDTH, start), strict=True)
    torch.testing.assert_close(torch.cat(encoders), whole.W_enc.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.cat(decoders), whole.W_dec.detach(), rtol=1e-4, atol=1e-6)


def test_a_batch_of_zeros_leaves_a_finite_sae():
    config, x = config_of("jumprelu", "jumprelu"), torch.zeros(256, ONE.d_in)
    sae = initial_sae(config, ONE, x.mean(0))
    calibrate(sae, config, x, x)
    assert all(p.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize(("word", "activation"), KINDS)
def test_300_steps_reach_a_stated_error(word, activation):
    steps = 300
    config = config_of(word, activation, tokens=steps * 256, learning_rate=3e-3, lr_warmup_steps=10, initial_decoder_bias="mean")
    x, y = rows_of(word)
    loop = Loop(initial_sae(config, shape_of(word), y.mean(0)), config, History())
    for _ in range(steps):
        loop.step(x, y)
    assert error_of(first_reconstruction(loop.sae, config, x), y) < 0.47
