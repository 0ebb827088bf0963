"""Edits inside the carried language model, against forward passes written out by hand."""

from dataclasses import replace

import pytest
import torch
from support.finished_saes import KINDS, finished_sae, unit_jumprelu

from scopemill.evaluator.evidence.logits import Readout, directions, readout
from scopemill.evaluator.fidelity.measure import EvaluationText
from scopemill.evaluator.steering import scores
from scopemill.evaluator.steering.edits import Condition, Edit
from scopemill.evaluator.steering.effect import dose_curve, measure_effects, promoted_tokens
from scopemill.evaluator.steering.generation import Sampling, generate, is_row_of, repeated
from scopemill.evaluator.steering.scores import direct_logits, output_scores, pushes, random_pushes
from scopemill.evaluator.steering.steering import SteeredSae, Steering
from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae

D, F = 192, 64
RESID, NEXT = Hook(2, "resid_post"), Hook(3, "resid_pre")


def edit(op: str = "add", latent: int = 5, amount: float | None = 3.0, **options) -> Edit:
    return Edit(sae="here", latent=latent, op=op, amount=None if op == "ablate" else amount, unit="raw", **options)


@pytest.fixture(scope="module")
def finished() -> FinishedSae:
    return unit_jumprelu(RESID.name, D, F)


@pytest.fixture(scope="module")
def tokens(card) -> torch.Tensor:
    tokens = torch.randint(10, 1000, (3, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = card.bos
    return tokens


@pytest.fixture(scope="module")
def text(tokens, card) -> EvaluationText:
    return EvaluationText(tokens, is_row_of(tokens, frozenset(card.special)), 2)


def steering(finished: FinishedSae, *edits: Edit, **options) -> Steering:
    return Steering((SteeredSae.of(finished, "here", edits),), **options)


def by_hand(latents: torch.Tensor, one: Edit) -> torch.Tensor:
    f = latents.clone()
    column = f[:, one.latent]
    new = {"add": column + one.amount if one.amount is not None else None, "ablate": column * 0}.get(one.op)
    new = column * one.amount if one.op == "scale" else torch.full_like(column, one.amount) if one.op == "clamp" else new
    f[:, one.latent] = torch.where(f[:, one.when.latent] > one.when.above, new, column) if one.when else new
    return f


EDITS = [
    edit(), edit("scale", amount=-2.0), edit("clamp", amount=1.5), edit("ablate"), edit(when=Condition(latent=7)),
    edit("clamp", when=Condition(latent=7, above=0.4)),
]  # fmt: skip


@pytest.mark.parametrize("one", EDITS, ids=str)
def test_the_difference_is_that_of_two_decodings_for_every_kind(one):
    for kind in KINDS:
        finished = finished_sae(kind)
        x = 3 * torch.randn(40, finished.sae.d_in, generator=torch.Generator().manual_seed(2))
        try:
            steered = SteeredSae.of(finished, "here", [one])
        except InputError:
            assert kind in ("crosscoder", "clt", "per_layer_transcoder")
            continue
        latents = finished.sae.encode(x)
        wanted = finished.sae.decode(by_hand(latents, one)) - finished.sae.decode(latents)
        wanted = wanted * (finished.sae.normalized(x)[2] if kind == "layer_norm" else 1)
        found = steered.difference(x if one.needs_latents else x, [True])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_edited_activation_keeps_what_the_sae_does_not_explain(lm, finished, tokens, text):
    one = edit("clamp", amount=4.0)
    clean = lm.capture(tokens, [RESID])[RESID.name]
    edited = lm.logits(tokens, steering(finished, one).edits(text.is_row), capture=[NEXT])[1][NEXT.name]
    latents = finished.sae.encode(clean[text.is_row])
    moved = (4.0 - latents[:, 5])[:, None] * finished.sae.W_dec[5]
    torch.testing.assert_close(edited[text.is_row], clean[text.is_row] + moved, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edited[~text.is_row], clean[~text.is_row])  # BOS stays as it is


def test_scaling_by_one_changes_nothing(lm, finished, tokens, text):
    clean = lm.logits(tokens)[0]
    torch.testing.assert_close(lm.logits(tokens, steering(finished, edit("scale", amount=1.0)).edits(text.is_row))[0], clean)


def test_two_edits_of_one_latent_see_each_other(lm, finished):
    x = torch.randn(10, D, generator=torch.Generator().manual_seed(3))
    both = SteeredSae.of(finished, "here", [edit("clamp", amount=2.0), edit("scale", amount=3.0)])
    alone = SteeredSae.of(finished, "here", [edit("clamp", amount=6.0)])
    torch.testing.assert_close(both.difference(x, [True, True]), alone.difference(x, [True]))


def test_the_control_moves_as_far_in_one_random_direction(lm, finished, tokens, text):
    clean = lm.capture(tokens, [NEXT])[NEXT.name]
    moves = {}
    for control in (None, 0, 1):
        edits = steering(finished, edit("clamp", amount=4.0), control=control).edits(text.is_row)
        moves[control] = (lm.logits(tokens, edits, capture=[NEXT])[1][NEXT.name] - clean)[text.is_row]
    torch.testing.assert_close(moves[0].norm(dim=1), moves[None].norm(dim=1), rtol=1e-3, atol=1e-3)
    unit = torch.nn.functional.normalize(moves[0], dim=1)
    assert (unit @ unit[0]).min() > 0.999 and torch.nn.functional.normalize(moves[1], dim=1)[0] @ unit[0] < 0.5


@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_generation_with_a_cache_is_generation_without_one(lm, finished, card, where):
    special = frozenset(card.special)
    prompt = torch.tensor([card.bos, 20, 30, 40])
    steered = steering(finished, edit("clamp", amount=30.0, where=where))
    found = list(generate(lm, prompt, special, Sampling(length=8, temperature=0.0), steered))
    tokens = prompt
    for step in range(len(found)):  # every pass anew, the mask of edited tokens by hand
        is_prompt = torch.arange(len(tokens)) < len(prompt)
        acts = {"all": torch.ones(len(tokens), dtype=torch.bool), "prompt": is_prompt, "generated": ~is_prompt}[where]
        rows = (acts & (tokens != card.bos))[None]
        everywhere = steering(finished, edit("clamp", amount=30.0)).edits(rows)
        token = int(lm.logits(tokens[None], everywhere if rows.any() else {})[0][0, -1].argmax())
        assert token == found[step]
        tokens = torch.cat([tokens, torch.tensor([token])])


def test_the_same_seed_gives_the_same_text(lm, card):
    prompt, special = torch.tensor([card.bos, 20, 30]), frozenset(card.special)
    one, same, other = (list(generate(lm, prompt, special, Sampling(length=12, temperature=1.0, seed=seed))) for seed in (0, 0, 1))
    assert one == same != other


def test_the_effect_is_that_of_two_passes_in_float64(lm, finished, text):
    one = steering(finished, edit("clamp", amount=6.0))
    promoted = [11, 12, 13]
    (effect,) = measure_effects(lm, [one], text, promoted)
    with torch.no_grad():
        clean, steered = (lm.logits(text.tokens, edits)[0].double().log_softmax(-1)[:, :-1] for edits in ({}, one.edits(text.is_row)))
    rows, targets = text.is_row[:, 1:], text.tokens[:, 1:, None]
    kl = (clean.exp() * (clean - steered)).sum(-1)[rows].mean()
    delta = (clean.gather(-1, targets) - steered.gather(-1, targets))[..., 0][rows].mean()
    masses = [x.exp()[..., promoted].sum(-1)[rows].mean() for x in (steered, clean)]
    assert effect.kl == pytest.approx(float(kl), rel=1e-4) and effect.delta_loss == pytest.approx(float(delta), rel=1e-3)
    assert [effect.promoted, effect.promoted_before] == pytest.approx([float(m) for m in masses], rel=1e-3)


@pytest.fixture(scope="module")
def out(lm) -> Readout:
    return readout(lm, [RESID, Hook(2, "attn_z")], 10**6)


def test_direct_logits_are_the_final_norms_gain_and_the_unembedding(lm, out, finished):
    """The carried model is Gemma 2's: its norm multiplies by 1 + weight."""
    original = lm.bridge.original_model
    gain = 1 + original.model.norm.original_component.weight.detach()
    unembedding = original.get_output_embeddings().weight.detach()
    logits = (finished.sae.W_dec[[3, 4]] * gain) @ unembedding.T
    steered = SteeredSae.of(finished, "here", [])
    found = direct_logits(out, steered, pushes(steered, [3, 4], [1.0, 1.0]))
    torch.testing.assert_close(found, logits - logits.mean(1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_rows_at_attn_z_go_through_the_output_projection(lm, out):
    o = lm.bridge.original_model.model.layers[2].self_attn.o_proj.original_component.weight.detach()
    z = torch.randn(2, o.shape[1], generator=torch.Generator().manual_seed(4))
    found = out.logits(directions(z, [Hook(2, "attn_z")], [o.shape[1]], out))
    torch.testing.assert_close(found, out.logits(z @ o.T), rtol=1e-3, atol=1e-3)


def test_a_norm_that_subtracts_the_mean_is_told_from_the_direction(out):
    centred = replace(out, centred=True)
    x = torch.randn(3, D, generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(centred.logits(x + 5.0), out.logits(x - x.mean(1, keepdim=True)), rtol=1e-3, atol=1e-3)


def test_output_scores_in_a_batch_are_those_of_one_at_a_time(lm, out, finished, card, monkeypatch):
    prompts = [torch.tensor([card.bos, 20, 30, 40]), torch.tensor([card.bos, 50, 60])]
    given = [(prompt, is_row_of(prompt, frozenset(card.special))) for prompt in prompts]
    monkeypatch.setattr(scores, "MOST_AT_ONCE", 4)
    steered, latents, amounts = SteeredSae.of(finished, "here", []), list(range(10)), [2.0 * (1 + i) for i in range(10)]
    found = output_scores(lm, out, steered, pushes(steered, latents, amounts), given)
    for latent, amount, score in zip(latents, amounts, found.tolist(), strict=True):
        one = steering(finished, edit(latent=latent, amount=amount))
        trained = [token for token in range(len(out.unembedding)) if token not in out.untrained]
        direct = direct_logits(out, steered, pushes(steered, [latent], [1.0]))[0]
        promoted = sorted(trained, key=lambda token, direct=direct: -direct[token])[:10]
        by_prompt = []
        for prompt, is_row in given:
            logits = lm.logits(prompt[None], one.edits(is_row[None]))[0][0, -1].double()
            best = max(promoted, key=lambda token, logits=logits: logits[token])
            rank = int((logits > logits[best]).sum())
            by_prompt.append(float(logits.softmax(-1)[best]) * (1 - rank / len(logits)))
        assert score == pytest.approx(sum(by_prompt) / 2, rel=1e-3)


def test_an_architecture_that_takes_no_sequences_half_way_scores_the_same(lm, out, finished, card, monkeypatch):
    steered = SteeredSae.of(finished, "here", [])
    tokens = torch.tensor([card.bos, 40, 50, 60])
    rows, given = pushes(steered, [0, 1, 2], [9.0, 5.0, 7.0]), [(tokens, tokens != card.bos)]
    assert scores._can_spread(lm, steered, rows, given[0])
    spread = output_scores(lm, out, steered, rows, given)

    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("shape '[1, 4]' is invalid")

    monkeypatch.setattr(lm, "spread_logits", refuse)
    torch.testing.assert_close(output_scores(lm, out, steered, rows, given), spread, rtol=1e-4, atol=1e-7)
    monkeypatch.setattr(lm, "spread_logits", lambda tokens, edits: torch.zeros(2, out.unembedding.shape[0]))
    assert not scores._can_spread(lm, steered, rows[:2], given[0]), "another result is no result"


def test_random_pushes_are_as_long_at_every_output_and_the_same_for_any_division():
    steered = SteeredSae.of(finished_sae("crosscoder"), "here", [])
    rows = pushes(steered, [0, 1, 2], [1.0, 2.0, 3.0])
    found = random_pushes(steered, rows, [0, 1, 2], seed=1)
    widths = list(steered.sae.shape.outputs)
    for random, row in zip(found.split(widths, dim=1), rows.split(widths, dim=1), strict=True):
        torch.testing.assert_close(random.norm(dim=1), row.norm(dim=1))
    assert torch.equal(found[2:], random_pushes(steered, rows[2:], [2], seed=1))
    assert torch.nn.functional.cosine_similarity(found, rows).abs().max() < 0.9


def test_a_larger_dose_moves_predictions_further(lm, out, finished, text):
    saes = (SteeredSae.of(finished, "here", [edit("add", amount=2.0)]),)
    curve = dose_curve(lm, out, saes, text, lambda steering: [1, 2, 3, 1, 2, 3, 1, 2, 3], doses=(0.5, 2.0, 8.0))
    kls = [dose.steered.kl for dose in curve]
    assert kls == sorted(kls) and curve[0].repeated == pytest.approx(4 / 7)
    assert curve[-1].collapsed(clean_loss=1e9) and not curve[0].steered.delta_loss > 1e9


def test_an_ablated_latents_promoted_tokens_are_those_it_held_down(out, finished):
    more, less = (promoted_tokens(out, [SteeredSae.of(finished, "here", [one])]) for one in (edit("add"), edit("ablate")))
    assert not set(more) & set(less)


def test_repetition_counts_three_grams():
    assert repeated([1, 2, 3, 4]) == 0 and repeated([1] * 12) == pytest.approx(0.9) and repeated([1]) == 0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"op": "add"}, "add needs an amount"),
        ({"op": "add", "amount": float("nan")}, "finite"),
        ({"op": "ablate", "amount": 1.0}, "takes no amount"),
        ({"op": "push", "amount": 1.0}, "op"),
        ({"op": "add", "amount": 1.0, "where": "later"}, "where"),
    ],
)
def test_edits_that_say_nothing_clear_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Edit(**({"sae": "here", "latent": 1} | fields))


def test_edits_that_cannot_act_are_refused_with_the_reason(finished):
    with pytest.raises(InputError, match="has no latent 64: its latents are 0 to 63"):
        SteeredSae.of(finished, "here", [edit(latent=64)])
    with pytest.raises(InputError, match="blocks.3.hook_resid_post after it has written blocks.1.hook_resid_post"):
        SteeredSae.of(finished_sae("crosscoder"), "here", [edit("ablate")])
    assert SteeredSae.of(finished_sae("crosscoder"), "here", [edit()]).outputs


def test_a_topk_sae_edits_what_it_selects(lm):
    sae = Sae(Shape.square(D), F, TopK(F, 4))
    with torch.no_grad():
        sae.W_enc.normal_(generator=torch.Generator().manual_seed(5))
        sae.W_dec.copy_(sae.W_enc)
    steered = SteeredSae.of(FinishedSae(sae, (RESID.name,), (RESID.name,)), "here", [edit("ablate")])
    x = torch.randn(300, D, generator=torch.Generator().manual_seed(6))
    moved = steered.difference(x, [True]).norm(dim=1) > 0
    assert torch.equal(moved, sae.encode(x)[:, 5] > 0) and 0 < moved.sum() < 300
