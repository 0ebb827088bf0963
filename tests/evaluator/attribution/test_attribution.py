"""Attribution against models where it is known, and against passes by hand in float64."""

import json

import pytest
import torch
from support.finished_saes import finished_sae, unit_jumprelu
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.evaluator.attribution.attribute import attribute, logit_difference
from scopemill.evaluator.steering.generation import is_row_of
from scopemill.harvester.language_model.describe import load_tokenizer
from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import write_finished
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.sae.registry import ACTIVATIONS

D, F, T, V = 192, 48, 9, 30
HOOK = Hook(3, "resid_post")
METRIC = logit_difference(7, 11)


class Linear:
    """A model of one hook: logits are a linear function of all positions' activations, or a bent one."""

    device = torch.device("cpu")

    def __init__(self, d: int, bend: float = 0.0):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(1, T, d, generator=generator, dtype=torch.float64) * 2
        self.mix, self.readout = torch.rand(T, T, generator=generator).double(), torch.randn(V, d, generator=generator).double()
        self.bend = bend

    def logits(self, tokens, edits=None, capture=()):
        x = self.x
        for edit in (edits or {}).values():
            x = edit(x)
        return self.mix @ (x + self.bend * x.square()) @ self.readout.T, {}


@pytest.fixture(scope="module")
def sae() -> FinishedSae:
    return unit_jumprelu(HOOK.name, D, F, "gemma-2-stdlib")


TOKENS, IS_ROW = torch.arange(T), torch.arange(T) > 0


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "layer_norm", "matryoshka"])
def test_in_a_linear_model_gradient_and_ablation_are_the_same(kind):
    finished = finished_sae(kind)
    lm, metric = Linear(finished.sae.d_in), logit_difference(7, None)
    found = attribute(lm, finished, "here", TOKENS, IS_ROW, metric, most=400, ablated=400)
    latents = finished.sae.encode(lm.x[0, 1:].float())
    assert len(found.places) == int((latents > 0).sum()) and len(found.latents) == int((latents > 0).any(0).sum())
    for share in (*found.latents, *found.places):
        assert share.ablation == pytest.approx(share.gradient, rel=2e-3, abs=2e-4 * abs(found.difference))
    assert sum(share.gradient for share in found.latents) == pytest.approx(found.difference - found.without_latents, rel=1e-3)
    assert found.difference == pytest.approx(float(metric(lm.logits(TOKENS)[0])[0])), "with nothing ablated the model is the clean one"
    magnitudes = [abs(share.gradient) for share in found.places]
    assert magnitudes == sorted(magnitudes, reverse=True)
    one = found.places[0]
    assert one.position and one.activation == pytest.approx(float(latents[one.position - 1, one.latent]), rel=1e-5)


def test_integrated_gradients_add_up_where_the_gradient_does_not(sae):
    lm = Linear(D, bend=0.3)
    plain, whole = (attribute(lm, sae, "here", TOKENS, IS_ROW, METRIC, steps, most=F, ablated=0) for steps in (1, 8))
    rests = plain.difference - plain.without_latents
    assert sum(share.gradient for share in whole.latents) == pytest.approx(rests, rel=1e-3), "a quadratic's middle points are exact"
    assert abs(sum(share.gradient for share in plain.latents) - rests) > 0.01 * abs(rests)
    assert all(share.ablation is None for share in whole.latents)


def test_ablation_in_a_language_model_is_a_pass_by_hand(lm, card, model, sae):
    ids = load_tokenizer(model)("import os\nimport sys\n\ndef main():", add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([card.bos, *ids])
    is_row = is_row_of(tokens, frozenset(card.special))
    found = attribute(lm, sae, "here", tokens, is_row, METRIC, most=6, ablated=3)
    x = lm.capture(tokens[None], [HOOK])[HOOK.name][0].double()
    decoder, encoder = sae.sae.W_dec.double(), sae.sae.W_enc.double()
    before = x @ encoder.T + sae.sae.b_enc.double()
    latents = torch.where(before > sae.sae.activation.threshold.double(), before, 0).clamp(min=0) * is_row[:, None]

    def measured(changed: torch.Tensor) -> float:
        return float(METRIC(lm.logits(tokens[None], {HOOK: lambda _: changed[None].float()})[0].double())[0])

    assert found.difference == pytest.approx(measured(x), rel=1e-4)
    for share in (*found.latents[:3], *found.places[:3]):
        own = (
            latents[:, share.latent] if share.position is None else latents[:, share.latent] * (torch.arange(len(tokens)) == share.position)
        )
        moved = measured(x - own[:, None] * decoder[share.latent])
        assert share.ablation == pytest.approx(found.difference - moved, rel=1e-3, abs=1e-4), share
    assert measured(x - latents @ decoder) == pytest.approx(found.without_latents, rel=1e-3, abs=1e-3)
    steps = attribute(lm, sae, "here", tokens, is_row, METRIC, steps=64, most=F, ablated=0)
    rests = found.difference - found.without_latents
    assert sum(share.gradient for share in steps.latents) == pytest.approx(rests, abs=0.05 * abs(rests) + 0.01)


def test_a_gradient_is_the_slope_of_scaling_a_latent(lm, card, sae):
    tokens = torch.tensor([card.bos, 40, 50, 60, 70])
    is_row = is_row_of(tokens, frozenset(card.special))
    share = attribute(lm, sae, "here", tokens, is_row, METRIC, most=1, ablated=0).places[0]
    x = lm.capture(tokens[None], [HOOK])[HOOK.name]
    values = []
    for step in (-0.05, 0.05):
        changed = x.clone()
        changed[0, share.position] += step * share.activation * sae.sae.W_dec[share.latent]
        values.append(float(METRIC(lm.logits(tokens[None], {HOOK: lambda _, changed=changed: changed})[0].double())[0]))
    assert share.gradient == pytest.approx((values[1] - values[0]) / 0.1, rel=0.02, abs=1e-3)


def test_transcoders_act_at_what_they_write(lm, card):
    from scopemill.trainer.sae.transcoder import Transcoder

    hooks = Hook(2, "mlp_in").name, Hook(2, "mlp_out").name
    transcoder = Transcoder(Shape((D,), (D,), False), F, ACTIVATIONS["relu"](F))
    with torch.no_grad():
        for parameter in transcoder.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    finished = FinishedSae(transcoder.requires_grad_(False), hooks[:1], hooks[1:])
    tokens = torch.tensor([card.bos, 40, 50, 60])
    found = attribute(lm, finished, "here", tokens, torch.tensor([False, True, True, True]), METRIC, most=2, ablated=2)
    read, written = (lm.capture(tokens[None], [Hook.parse(name)])[name] for name in hooks)
    share = found.latents[0]
    latents = transcoder.encode(read)[0, :, share.latent] * torch.tensor([0, 1, 1, 1])
    changed = written - latents[None, :, None] * transcoder.W_dec[share.latent]
    moved = float(METRIC(lm.logits(tokens[None], {Hook.parse(hooks[1]): lambda _: changed})[0].double())[0])
    assert share.ablation == pytest.approx(found.difference - moved, rel=1e-3, abs=1e-4)


def test_what_cannot_act_is_refused():
    for kind in ("crosscoder", "clt"):
        with pytest.raises(InputError, match="its latents are known too late"):
            attribute(Linear(12), finished_sae(kind), "here", TOKENS, IS_ROW, METRIC)


def test_the_command_names_latents_and_tokens(sae, model, tmp_path):
    folder = str(tmp_path / "sae")
    write_finished(folder, "saelens", sae)
    command = ["attribute", folder, "--prompt", "import os\nimport", "--answer", " sys", "--model", model.name, "--most", "3"]
    done = CliRunner().invoke(app, [*command, "--against", " os", "--ablated", "2", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["tokens"][1:] and found["answer"].strip() in " sys" and len(found["attribution"]["latents"]) == 3
    assert [share["ablation"] is None for share in found["attribution"]["places"]] == [False, False, True]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "less the mean of all logits" in done.output and str(found["attribution"]["latents"][0]["latent"]) in done.output
    with pytest.raises(InputError, match="begin with the same token"):
        CliRunner().invoke(app, [*command, "--against", " sys"], catch_exceptions=False)
