"""Fine-tuning in the carried language model: the gradient through the model, the constraints, the units and the resume."""

import copy

import pytest
import safetensors.torch
import torch

from scopemill.evaluator.steering.generation import is_row_of
from scopemill.harvester.language_model.model import put_rows
from scopemill.proto.errors import ScopemillError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.trainer.config.finetuning import KlConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.finetune import checkpoint
from scopemill.trainer.finetune.loop import FinetuneLoop, Ports, measure_units
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import ACTIVATIONS
from scopemill.trainer.sae.transcoder import Transcoder

D, F = 192, 96
RESID, MLP_IN, MLP_OUT = Hook(2, "resid_post"), Hook(2, "mlp_in"), Hook(2, "mlp_out")
CONFIG = KlConfig(tokens=1, sequences_per_step=4, sequences_per_forward=2, learning_rate=3e-3)


@pytest.fixture(scope="module")
def batches(card):
    """Some steps' sequences [4, 24] and their masks."""
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(10, 1000, (4, 24), generator=generator) for _ in range(6)]
    for block in tokens:
        block[:, 0] = card.bos
    return [(block, is_row_of(block, frozenset(card.special))) for block in tokens]


def sae_of(kind: str = "jumprelu", scale: float = 1.0) -> Sae:
    """An untrained SAE for raw activations; its latents are ``scale`` times as large, and it is the same function."""
    shape = Shape((D,), (D,), False) if kind == "transcoder" else Shape.square(D)
    name = "relu" if kind == "transcoder" else kind
    sae = (Transcoder if kind == "transcoder" else Sae)(shape, F, TopK(F, 8) if name == "topk" else ACTIVATIONS[name](F))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        rows = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
        sae.W_dec.copy_(rows / scale)
        sae.W_enc.copy_(rows * 0.5 * scale)
        if name == "jumprelu":
            sae.activation.threshold.fill_(0.1 * scale)
    return sae.requires_grad_(False)


def loop_of(lm, batches, arm="kl", sae=None, kind="jumprelu", config=CONFIG, sparsity=0.0) -> FinetuneLoop:
    inputs, outputs = ((MLP_IN,), (MLP_OUT,)) if kind == "transcoder" else ((RESID,), (RESID,))
    units = measure_units(lm, inputs + outputs, *batches[0])
    ports = Ports(inputs, outputs, tuple(units[h] for h in inputs), tuple(units[h] for h in outputs))
    return FinetuneLoop(lm, sae or sae_of(kind), ports, config, arm, len(batches), sparsity)


def divergence_of(lm, sae: Sae, tokens, is_row) -> float:
    """KL in float64, from two plain passes of the model."""
    with torch.no_grad():
        clean, captured = lm.logits(tokens, capture=[RESID])
        rebuilt = sae(captured[RESID.name][is_row])
        spliced, _ = lm.logits(tokens, {RESID: lambda x: put_rows(is_row, rebuilt, x)})
    p, q = (x[is_row].double().log_softmax(-1) for x in (clean, spliced))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_first_report_is_the_divergence_of_the_finished_sae(lm, batches):
    """Another code, the raw SAE and the raw activations: the units of training change nothing."""
    report = loop_of(lm, batches).step(*batches[0])
    assert report.kl == pytest.approx(divergence_of(lm, sae_of(), *batches[0]), rel=1e-4)


def test_kl_fine_tuning_lowers_the_divergence_more_than_the_error_alone(lm, batches):
    after = {}
    for arm in ("kl", "mse"):
        loop = loop_of(lm, batches, arm)
        for batch in batches:
            loop.step(*batch)
        after[arm] = divergence_of(lm, loop.raw_sae(), *batches[0])
    assert after["kl"] < after["mse"] < divergence_of(lm, sae_of(), *batches[0])


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "relu", "gated", "transcoder"])
def test_rows_keep_their_norms_and_thresholds_their_values(lm, batches, kind):
    loop, before = loop_of(lm, batches, kind=kind, sparsity=1e-3), sae_of(kind)
    for batch in batches[:2]:
        loop.step(*batch)
    after = loop.raw_sae()
    assert torch.allclose(after.norms(), loop_of(lm, batches, kind=kind).raw_sae().norms(), rtol=1e-5)
    if kind == "jumprelu":
        assert torch.allclose(after.activation.threshold, before.activation.threshold, rtol=1e-5)
    for name in ("W_enc", "W_dec", "b_dec"):
        assert not torch.allclose(getattr(after, name), getattr(before, name), atol=1e-4), name


def test_the_scale_of_latents_makes_no_difference(lm, batches):
    one, other = (loop_of(lm, batches, sae=sae_of(scale=scale)) for scale in (1.0, 5.0))
    for batch in batches[:3]:
        reports = [loop.step(*batch) for loop in (one, other)]
    assert reports[0].kl == pytest.approx(reports[1].kl, rel=1e-3)
    assert reports[0].l0 == pytest.approx(reports[1].l0, abs=0.05)


def test_the_l1_penalty_keeps_a_relu_sae_sparser(lm, batches):
    plain, penalised = (loop_of(lm, batches, kind="relu", sparsity=sparsity) for sparsity in (0.0, 0.1))
    for batch in batches:
        reports = [loop.step(*batch) for loop in (plain, penalised)]
    assert reports[1].l0 < reports[0].l0


@pytest.mark.parametrize("arm", ["kl", "mse"])
def test_a_resumed_loop_ends_with_the_same_bits(lm, batches, bucket, arm):
    layout, straight = SaeLayout("tuned"), loop_of(lm, batches, arm)
    reports = [straight.step(*batch) for batch in batches[:3]]
    checkpoint.save(bucket, layout, straight, reports)
    reports += [straight.step(*batch) for batch in batches[3:]]
    resumed = loop_of(lm, batches, arm)
    again = checkpoint.resume(bucket, layout, resumed)
    assert resumed.step_number == 3 and len(again) == 3
    again += [resumed.step(*batch) for batch in batches[3:]]
    assert str(again) == str(reports)  # as text: a KL that is not there is nan
    bits = [safetensors.torch.save(loop.state()) for loop in (straight, resumed)]
    assert bits[0] == bits[1] and straight.finished and resumed.finished


def test_a_damaged_checkpoint_is_begun_again(lm, batches, bucket):
    layout, loop = SaeLayout("tuned"), loop_of(lm, batches)
    checkpoint.save(bucket, layout, loop, [loop.step(*batches[0])])
    place = layout.checkpoint(1).weights
    bucket.write(place, bucket.read(place)[:-4])
    fresh = loop_of(lm, batches)
    assert checkpoint.resume(bucket, layout, fresh) == [] and fresh.step_number == 0


def test_a_loss_that_is_not_finite_stops_before_weights_change(lm, batches):
    broken = sae_of()
    broken.b_dec[0] = torch.inf
    loop = loop_of(lm, batches, sae=broken)
    before = copy.deepcopy(loop.sae.state_dict())
    with pytest.raises(ScopemillError, match="step 0: the loss is not finite"):
        loop.step(*batches[0])
    assert all(torch.equal(value, before[name]) for name, value in loop.sae.state_dict().items())
