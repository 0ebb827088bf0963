"""Fidelity against an independent computation: transformers' own forward hooks, then numpy in float64, in two passes."""

import math
import textwrap
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.sae_reference import quick
from torch.utils._python_dispatch import TorchDispatchMode

from scopemill.evaluator.config import EvaluationConfig, ProbesConfig
from scopemill.evaluator.fidelity import actor
from scopemill.evaluator.fidelity import measure as measuring
from scopemill.evaluator.fidelity.actor import Evaluator
from scopemill.evaluator.fidelity.jobs import Job, committed, settings_of
from scopemill.evaluator.fidelity.measure import (
    LATENT_BYTES,
    LOG_FREQUENCY_EDGES,
    EvaluationText,
    Moments,
    _histogram,
    measure,
    measure_baseline,
)
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.evaluator.probes.scores import ProbeSummary
from scopemill.evaluator.report.page import render_report
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.describe import load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.text.packed_text import save_sequences
from scopemill.harvester.text.packing import Sequences
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector
from scopemill.proto.errors import CorpusError, InputError, NotFinite, Stopped
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout, SaeLayout
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.config.wiring import Port, Shape, Wiring
from scopemill.trainer.formats import FinishedSae, write_saelens
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.activations.relu import ReLU
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.crosscoder import Crosscoder
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.sae.transcoder import Transcoder
from scopemill.trainer.training import checkpoint
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were made inside a ``with`` block and there at one moment."""

    def __init__(self):
        super().__init__()
        self.bytes = self._now = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.bytes = max(self.bytes, self._now)
        return made

    def _gone(self, n: int) -> None:
        self._now -= n


S, T, F, D = 7, 40, 64, 192
HOOKS = [Hook(2, "resid_post"), Hook(3, "attn_z"), Hook(1, "mlp_out")]
EVERY_HOOK = pytest.mark.parametrize("hook", HOOKS, ids=str)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokens(model, card) -> torch.Tensor:
    """Sequences [S, T] of source text, each opened by BOS, with a few special tokens in their midst."""
    ids = load_tokenizer(model)(Path(textwrap.__file__).read_text(), add_special_tokens=False)["input_ids"]
    ids = [i for i in ids if i not in card.special][: S * T]
    block = torch.tensor(ids).view(S, T)
    block[:, 0] = card.bos
    block[1, 17] = block[4, 3] = card.bos
    block[5, 30:] = card.special[0]
    return block


@pytest.fixture(scope="module")
def is_row(tokens, card) -> torch.Tensor:
    mask = torch.ones(S, T, dtype=torch.bool)
    for special in card.special:
        mask &= tokens != special
    assert (~mask).sum() == S + 2 + 10
    return mask


@pytest.fixture(scope="module")
def text(tokens, is_row) -> EvaluationText:
    return EvaluationText(tokens.int(), is_row, sequences_per_forward=3)  # three batches, the last of one sequence


@dataclass
class Plain:
    """The model as transformers runs it, without TransformerLens."""

    model: torch.nn.Module
    tokens: torch.Tensor

    def run(self, hook: Hook, edit=None) -> tuple[np.ndarray, np.ndarray]:
        """Activations [S, T, d], and losses [S, T-1] in float64, with the activations replaced by ``edit`` of them."""
        seen, losses = self.run_all({hook: edit})
        return seen[hook], losses

    def run_all(self, edits: dict) -> tuple[dict[Hook, np.ndarray], np.ndarray]:
        """The same of several hooks in one pass; an edit of None only looks."""
        seen: dict[Hook, np.ndarray] = {}
        handles = [self._hooked(hook, edit, seen) for hook, edit in edits.items()]
        try:
            with torch.inference_mode():
                logits = self.model(self.tokens).logits.double().numpy()
        finally:
            for handle in handles:
                handle.remove()
        shifted = logits[:, :-1] - logits[:, :-1].max(axis=-1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        targets = self.tokens[:, 1:].numpy()
        return seen, -np.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]

    def _hooked(self, hook: Hook, edit, seen: dict[Hook, np.ndarray]):
        def note(x: torch.Tensor) -> torch.Tensor:
            seen[hook] = x.double().numpy()
            return x if edit is None else torch.from_numpy(edit(seen[hook])).to(x.dtype)

        def of_output(module, arguments, output):
            return (note(output[0]), *output[1:]) if isinstance(output, tuple) else note(output)

        layer = self.model.model.layers[hook.layer]
        if hook.site == "attn_z":
            return layer.self_attn.o_proj.register_forward_pre_hook(lambda module, arguments: (note(arguments[0]),))
        module = {"resid_post": layer, "mlp_in": layer.pre_feedforward_layernorm, "mlp_out": layer.post_feedforward_layernorm}[hook.site]
        return module.register_forward_hook(of_output)


@pytest.fixture(scope="module")
def plain(model, tokens) -> Plain:
    from transformers import AutoModelForCausalLM

    return Plain(AutoModelForCausalLM.from_pretrained(model.name, dtype=torch.float32, attn_implementation="eager").eval(), tokens)


def replaced(is_row: torch.Tensor, everywhere: bool, value):
    """An edit in numpy: ``value`` of the rows (and of the special positions, if everywhere)."""
    where = np.ones((S, T), bool) if everywhere else is_row.numpy()

    def edit(x: np.ndarray) -> np.ndarray:
        out = x.copy()
        out[where] = value(x[where])
        return out

    return edit


def counted(losses: np.ndarray, is_row: torch.Tensor) -> float:
    """The mean over predicted tokens that are no special ones, summed one by one."""
    kept = [losses[s, t - 1] for s in range(S) for t in range(1, T) if is_row[s, t]]
    return sum(kept) / len(kept)


def make_sae(x: np.ndarray, y: np.ndarray | None = None, kind: type[Sae] = Sae, shape: Shape | None = None) -> Sae:
    """From raw rows [N, d_in] (and what they shall become, [N, d_out]) an SAE that knows some of their directions; eight of its
    latents never fire."""
    y = x if y is None else y
    chosen = np.random.default_rng(0).choice(len(x), F, replace=False)
    mean, target = x.mean(axis=0), y.mean(axis=0)
    lengths = np.linalg.norm((x - mean)[chosen], axis=1, keepdims=True)
    directions = (x - mean)[chosen] / lengths
    typical = float(np.linalg.norm(x - mean, axis=1).mean())
    sae = kind(shape or Shape.square(x.shape[1]), F, JumpReLU(F))
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(directions))
        sae.W_dec.copy_(torch.from_numpy(0.3 * (y - target)[chosen] / lengths))
        sae.b_enc.copy_(torch.from_numpy(-directions @ mean))
        sae.b_enc[:8] = -1e6
        sae.b_dec.copy_(torch.from_numpy(target))
        sae.activation.threshold.fill_(0.3 * typical)
    return sae.requires_grad_(False)


def apply(sae: Sae, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = {name: value.double().numpy() for name, value in sae.named_parameters()}
    z = x @ p["W_enc"].T + p["b_enc"]
    f = np.where(z > p["activation.threshold"], z, 0)
    return f, f @ p["W_dec"] + p["b_dec"]


def relu_sae(width: int) -> Sae:
    return Sae(Shape.square(D), width, ReLU(width)).requires_grad_(False)


def identity_sae(shift: float = 0.0) -> Sae:
    """relu(x) - relu(-x) = x, and a constant added."""
    sae = relu_sae(2 * D)
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    sae.W_enc.copy_(both)
    sae.W_dec.copy_(both)
    sae.b_dec.fill_(shift)
    return sae


def baseline_of(lm, hook: Hook, text: EvaluationText, everywhere: bool):
    return measure_baseline(lm, (hook,), text, everywhere)


def measured(lm, sae: Sae, hook: Hook, text: EvaluationText, baseline, everywhere: bool):
    """An SAE that rebuilds the hook that it reads."""
    return measure(lm, sae, (hook,), (hook,), text, baseline, everywhere)


@EVERY_HOOK
@pytest.mark.parametrize("everywhere", [False, True], ids=["rows", "everywhere"])
def test_the_baseline_is_what_transformers_and_two_passes_give(lm, plain, text, is_row, hook, everywhere):
    x, clean = plain.run(hook)
    rows = x[is_row.numpy()]
    mean = rows.mean(axis=0)
    zero = plain.run(hook, replaced(is_row, everywhere, np.zeros_like))[1]
    mean_ablated = plain.run(hook, replaced(is_row, everywhere, lambda r: np.broadcast_to(mean, r.shape)))[1]
    baseline = baseline_of(lm, hook, text, everywhere)
    assert baseline.rows == len(rows) == int(is_row.sum())
    assert baseline.variance == pytest.approx(((rows - mean) ** 2).sum(), rel=1e-4)
    assert baseline.loss_clean == pytest.approx(counted(clean, is_row), rel=1e-4)
    assert baseline.loss_zero_ablated == pytest.approx(counted(zero, is_row), rel=1e-4)
    assert baseline.loss_mean_ablated == pytest.approx(counted(mean_ablated, is_row), rel=1e-4)
    assert len({round(v, 3) for v in (baseline.loss_clean, baseline.loss_zero_ablated, baseline.loss_mean_ablated)}) == 3


@EVERY_HOOK
@pytest.mark.parametrize("everywhere", [False, True], ids=["rows", "everywhere"])
def test_an_sae_measures_what_transformers_and_two_passes_give(lm, plain, text, is_row, hook, everywhere):
    x, _ = plain.run(hook)
    rows = x[is_row.numpy()]
    sae = make_sae(rows)
    f, reconstruction = apply(sae, rows)
    firing = (f > 0).mean(axis=0)
    spliced = plain.run(hook, replaced(is_row, everywhere, lambda r: apply(sae, r)[1]))[1]

    baseline = baseline_of(lm, hook, text, everywhere)
    fidelity = measured(lm, sae, hook, text, baseline, everywhere)
    assert fidelity.fvu == pytest.approx(((rows - reconstruction) ** 2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum(), rel=1e-3)
    assert fidelity.l0 == pytest.approx(firing.sum(), abs=5 / len(rows))  # float32 may tip a latent at its threshold
    assert fidelity.dead_fraction == (firing == 0).mean() >= 8 / F
    assert fidelity.loss_spliced == pytest.approx(counted(spliced, is_row), rel=1e-3)
    assert 0.5 < firing.sum() < F / 2 and 0.01 < fidelity.fvu < 1 and abs(fidelity.loss_spliced - baseline.loss_clean) > 0.01
    assert sum(fidelity.histogram.counts) + fidelity.histogram.never == F
    assert fidelity.histogram.never == (firing == 0).sum()


@EVERY_HOOK
def test_special_positions_keep_the_original_unless_they_are_spliced_too(lm, text, is_row, hook):
    """A reconstruction that is right on the rows cannot tell; one that is wrong at the special positions alone can."""
    baseline = baseline_of(lm, hook, text, False)
    tapped = []

    class RightOnRows(Sae):
        def decode(self, latents):
            tapped.append(len(latents))
            return super().decode(latents) + (5.0 if len(latents) in everywhere_sizes else 0.0)

    sae = RightOnRows(Shape.square(D), 2 * D, ReLU(2 * D)).requires_grad_(False)
    sae.load_state_dict(identity_sae().state_dict())
    everywhere_sizes = {tokens.numel() for tokens, _ in text.batches()}
    kept = measured(lm, sae, hook, text, baseline, False)
    assert tapped == [int(mask.sum()) for _, mask in text.batches()], "by default only rows go through the SAE"
    assert kept.loss_spliced == pytest.approx(baseline.loss_clean, rel=1e-6)
    tapped.clear()
    spliced = measured(lm, sae, hook, text, baseline, True)
    assert tapped == [tokens.numel() for tokens, _ in text.batches()]
    assert abs(spliced.loss_spliced - baseline.loss_clean) > 0.01


@pytest.mark.parametrize("everywhere", [False, True], ids=["rows", "everywhere"])
def test_splicing_special_positions_leaves_fvu_l0_and_frequencies_to_the_rows(lm, text, hook=HOOKS[0], *, everywhere):
    rows = lm.capture(text.tokens, [hook])[hook.name][text.is_row].double().numpy()
    baseline = baseline_of(lm, hook, text, everywhere)
    found = measured(lm, make_sae(rows), hook, text, baseline, everywhere)
    reference = measured(lm, make_sae(rows), hook, text, baseline, not everywhere)
    assert (found.l0, found.dead_fraction, found.histogram) == (reference.l0, reference.dead_fraction, reference.histogram)
    assert found.fvu == pytest.approx(reference.fvu, rel=1e-6) and found.loss_spliced != reference.loss_spliced


@EVERY_HOOK
def test_a_perfect_sae_has_the_clean_loss_and_no_unexplained_variance(lm, text, hook):
    baseline = baseline_of(lm, hook, text, True)
    fidelity = measured(lm, identity_sae(), hook, text, baseline, True)
    assert fidelity.fvu < 1e-12
    assert fidelity.loss_spliced == pytest.approx(baseline.loss_clean, rel=1e-7)
    assert fidelity.l0 == pytest.approx(192, abs=1), "of x and -x one is positive"


@EVERY_HOOK
def test_an_sae_that_always_gives_the_mean_leaves_all_variance_and_has_the_mean_ablated_loss(lm, text, hook):
    baseline = baseline_of(lm, hook, text, False)
    rows = lm.capture(text.tokens, [hook])[hook.name][text.is_row].double()
    sae = relu_sae(4)
    sae.b_dec.copy_(rows.mean(0))
    fidelity = measured(lm, sae, hook, text, baseline, False)
    assert fidelity.fvu == pytest.approx(1, abs=1e-6)
    assert fidelity.loss_spliced == pytest.approx(baseline.loss_mean_ablated, rel=1e-6)
    assert (fidelity.l0, fidelity.dead_fraction, fidelity.histogram.never) == (0, 1, 4)
    sae.b_dec.zero_()
    assert measured(lm, sae, hook, text, baseline, False).loss_spliced == pytest.approx(baseline.loss_zero_ablated, rel=1e-6)


@EVERY_HOOK
def test_a_constant_bias_counts_as_error(lm, text, hook):
    """1 - Var(x - x_hat) / Var(x) would hide it."""
    baseline, shift = baseline_of(lm, hook, text, False), 0.5
    fidelity = measured(lm, identity_sae(shift), hook, text, baseline, False)
    assert fidelity.fvu == pytest.approx(baseline.rows * 192 * shift**2 / baseline.variance, rel=1e-3)


@EVERY_HOOK
def test_the_variance_is_around_the_mean_vector_not_around_one_number_or_zero(lm, text, hook):
    rows = lm.capture(text.tokens, [hook])[hook.name][text.is_row].double().numpy()
    baseline = baseline_of(lm, hook, text, False)
    assert baseline.variance == pytest.approx(((rows - rows.mean(axis=0)) ** 2).sum(), rel=1e-9)
    assert baseline.variance < 0.999 * rows.size * rows.var() and baseline.variance < 0.999 * (rows**2).sum()


def test_the_size_of_a_forward_pass_does_not_matter(lm, text, hook=HOOKS[0]):
    rows = lm.capture(text.tokens, [hook])[hook.name][text.is_row].double().numpy()
    found = []
    for n in (1, 2, 100):
        part = EvaluationText(text.tokens, text.is_row, n)
        baseline = baseline_of(lm, hook, part, False)
        fidelity = measured(lm, make_sae(rows), hook, part, baseline, False)
        found.append((*vars(baseline).values(), fidelity.loss_spliced, fidelity.fvu, fidelity.l0))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5)


@pytest.mark.parametrize("everywhere", [False, True], ids=["rows", "everywhere"])
def test_the_size_of_the_pieces_does_not_matter_to_any_bit(lm, text, monkeypatch, everywhere, hook=HOOKS[0]):
    """On this machine's CPU, and for these sizes: products of few rows may be summed in another order elsewhere."""
    rows = lm.capture(text.tokens, [hook])[hook.name][text.is_row].double().numpy()
    baseline = baseline_of(lm, hook, text, everywhere)
    found, exact = [], []
    for size in (10**6, 64, 24, 7, 1):
        monkeypatch.setattr(measuring, "PIECE_BYTES", LATENT_BYTES * F * size)
        assert measuring.rows_at_once(F) == size
        fidelity = measured(lm, make_sae(rows), hook, text, baseline, everywhere)
        exact.append((fidelity.l0, fidelity.dead_fraction, fidelity.histogram))
        found.append((fidelity.fvu, fidelity.loss_spliced))
    assert exact == exact[:1] * len(exact)
    np.testing.assert_allclose(found, found[:1] * len(found), rtol=1e-6)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "gated", "standard"])
def test_the_memory_of_latents_is_bounded_at_any_width(kind, monkeypatch):
    """The peak above what was there before is the budget, and what the rows themselves take: not rows times width."""
    width, d, n = 2**17, 8, 512
    config, budget = quick(architecture=kind, width=width, sparsity=16 if kind == "topk" else 0.37), 64 * 2**20
    monkeypatch.setattr(measuring, "PIECE_BYTES", budget)
    sae = initial_sae(config, Shape.square(d), torch.zeros(d))
    sae = fold(sae, [1.0], [1.0]).requires_grad_(False)
    x, counted = torch.randn(n, d), torch.ones(n, dtype=torch.bool)
    with Peak() as peak:
        measuring.reconstruct_in_pieces(sae, x, x, counted)
    assert budget / 4 < peak.bytes <= budget + 2**20 + 8 * width + n * (8 * d + 8)
    assert n * width * 4 > 3 * budget


def test_measuring_changes_neither_model_nor_sae(lm, text, hook=HOOKS[0]):
    rows = lm.capture(text.tokens, [hook])[hook.name][text.is_row].double().numpy()
    sae, first = make_sae(rows), baseline_of(lm, hook, text, False)
    before = {name: p.clone() for name, p in sae.named_parameters()}
    measured(lm, sae, hook, text, first, False)
    assert baseline_of(lm, hook, text, False) == first
    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())


def test_a_model_in_bfloat16_is_measured_too(model, lm, text, hook=HOOKS[0]):
    half = LanguageModel(ModelConfig(name=model.name, dtype="bfloat16"))
    whole, baseline = baseline_of(lm, hook, text, False), baseline_of(half, hook, text, False)
    for field, value in vars(baseline).items():
        assert value == pytest.approx(vars(whole)[field], rel=0.05), field
    fidelity = measured(half, identity_sae(), hook, text, baseline, False)
    assert fidelity.fvu < 1e-12 and fidelity.loss_spliced == pytest.approx(baseline.loss_clean, rel=1e-6)


MLP = (Hook(2, "mlp_in"),), (Hook(2, "mlp_out"),)
LAYERS = ((Hook(1, "resid_post"), Hook(3, "resid_post")),) * 2


@pytest.mark.parametrize(("inputs", "outputs", "kind"), [(*MLP, Transcoder), (*LAYERS, Crosscoder)], ids=["transcoder", "crosscoder"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["rows", "everywhere"])
def test_what_spans_several_hooks_measures_what_transformers_and_two_passes_give(
    lm, plain, text, is_row, inputs, outputs, kind, everywhere
):
    """All outputs are replaced together by what the SAE makes of the clean model's inputs: a later layer's replacement does not
    see that an earlier one was replaced."""
    where, rows = np.ones((S, T), bool) if everywhere else is_row.numpy(), is_row.numpy()
    seen, clean = plain.run_all(dict.fromkeys({*inputs, *outputs}))
    x, y = (np.concatenate([seen[hook] for hook in hooks], axis=-1) for hooks in (inputs, outputs))
    shape = Shape(*(tuple(seen[hook].shape[-1] for hook in hooks) for hooks in (inputs, outputs)), autoencoder=inputs == outputs)
    sae = make_sae(x[rows], y[rows], kind, shape)
    mean, columns = y[rows].mean(axis=0), np.cumsum(shape.outputs)[:-1]

    def spliced(values: np.ndarray) -> float:
        """The loss with ``values`` [N, d_out] of the positions that are replaced."""
        edits = {
            h: replaced(is_row, everywhere, lambda r, part=part: part)
            for h, part in zip(outputs, np.split(values, columns, axis=1), strict=True)
        }
        return counted(plain.run_all(edits)[1], is_row)

    baseline = measure_baseline(lm, outputs, text, everywhere)
    assert baseline.rows == rows.sum() and baseline.loss_clean == pytest.approx(counted(clean, is_row), rel=1e-4)
    assert baseline.variance == pytest.approx(((y[rows] - mean) ** 2).sum(), rel=1e-4)
    assert baseline.loss_zero_ablated == pytest.approx(spliced(np.zeros_like(y[where])), rel=1e-4)
    assert baseline.loss_mean_ablated == pytest.approx(spliced(np.broadcast_to(mean, y[where].shape)), rel=1e-4)

    fidelity = measure(lm, sae, inputs, outputs, text, baseline, everywhere)
    f, rebuilt = apply(sae, x[rows])
    firing = (f > 0).mean(axis=0)
    assert fidelity.fvu == pytest.approx(((y[rows] - rebuilt) ** 2).sum() / ((y[rows] - mean) ** 2).sum(), rel=1e-3)
    assert fidelity.l0 == pytest.approx(firing.sum(), abs=5 / rows.sum()) and fidelity.dead_fraction == (firing == 0).mean() >= 8 / F
    assert fidelity.loss_spliced == pytest.approx(spliced(apply(sae, x[where])[1]), rel=1e-3)
    assert abs(fidelity.loss_spliced - baseline.loss_clean) > 0.005 and 0.01 < fidelity.fvu < 1.5


class Moved:
    """The language model in other coordinates: at one hook everything is seen, and may be replaced, far from zero."""

    def __init__(self, lm: LanguageModel, hook: Hook, offset: torch.Tensor):
        self._lm, self._hook, self._offset, self.device = lm, hook, offset, lm.device

    def capture(self, tokens, hooks):
        return {name: x + self._offset if name == self._hook.name else x for name, x in self._lm.capture(tokens, hooks).items()}

    def token_losses(self, tokens, edits):
        back = {hook: lambda x, edit=edit: edit(x + self._offset) - self._offset for hook, edit in edits.items()}
        return self._lm.token_losses(tokens, back)


@EVERY_HOOK
def test_a_huge_mean_changes_neither_fvu_nor_losses(lm, text, hook):
    """FVU is a ratio of distances, whatever lies far from zero; float32 is what keeps it from being exact."""
    size = lm.capture(text.tokens, [hook])[hook.name][text.is_row].square().mean().sqrt()
    offset = 300 * size * torch.randn(D, generator=torch.Generator().manual_seed(0))
    moved = Moved(lm, hook, offset)
    rows = moved.capture(text.tokens, [hook])[hook.name][text.is_row].double().numpy()
    still = rows - offset.double().numpy()
    one, other = make_sae(still), make_sae(still)
    other.b_enc -= other.W_enc @ offset
    other.b_dec += offset
    here, there = baseline_of(lm, hook, text, False), baseline_of(moved, hook, text, False)
    assert there.variance == pytest.approx(((rows - rows.mean(axis=0)) ** 2).sum(), rel=1e-6)
    found, expected = measured(moved, other, hook, text, there, False), measured(lm, one, hook, text, here, False)
    assert found.fvu == pytest.approx(expected.fvu, rel=0.01)
    assert found.loss_spliced == pytest.approx(expected.loss_spliced, rel=0.01)
    assert there.loss_mean_ablated == pytest.approx(here.loss_mean_ablated, rel=1e-3)
    assert there.variance < 1e-3 * rows.size * rows.var(), "a variance around one scalar mean would be a thousandfold"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cuts", [[1000], [1, 999], [333, 0, 333, 334], [10] * 100])
def test_moments_are_a_two_pass_computation_even_where_the_mean_is_huge(dtype, cuts):
    x = (1e4 * (1 + torch.arange(16)) + torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    moments = Moments(16)
    for part in x.split(cuts):
        moments.add(part)
    exact = x.double().numpy()
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-13)
    assert moments.squares == pytest.approx(((exact - exact.mean(axis=0)) ** 2).sum(), rel=1e-9)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200), st.integers(10**6, 10**9))
def test_every_latent_is_in_one_bin_of_the_histogram_or_never_fired(fired, rows):
    histogram = _histogram(np.array(fired, dtype=float) / rows)
    assert len(histogram.edges) == len(histogram.counts) + 1 and histogram.edges == LOG_FREQUENCY_EDGES
    assert histogram.never == fired.count(0) and sum(histogram.counts) + histogram.never == len(fired)


def test_a_latents_bin_is_that_of_its_frequencys_logarithm():
    histogram = _histogram(np.array([0.0, 1.0, 0.5, 0.011, 10**-3.9, 1e-9]))
    bins = [(histogram.edges[i], count) for i, count in enumerate(histogram.counts) if count]
    assert histogram.never == 1 and bins == [(-7.0, 1), (-4.0, 1), (-2.0, 1), (-0.5, 1), (-0.25, 1)]


CONTEXT = T
CONFIG = quick(width=F, sparsity=0.5, seed=1)
WIRING = Wiring((Port("blocks.2.hook_resid_post", D, 20.0),))
LAYOUT = SaeLayout("saes/m/blocks.2.hook_resid_post/width_64/jumprelu/0")
EVALUATION = EvaluationConfig(sequences=S, sequences_per_forward=3)


@pytest.fixture
def evaluator(bucket, model, card, lm, tokens, monkeypatch) -> Evaluator:
    """An evaluator over the same text, kept as a harvest's reserved sequences, and an SAE with two checkpoints."""
    block = Sequences(tokens.int().numpy(), np.zeros((S, T), np.int64), np.zeros((S, T), np.int32), np.ones((S, T), bool))
    save_sequences(bucket, DatasetLayout("d").reserved, block)
    sae = initial_sae(CONFIG, WIRING.shape, torch.zeros(D))
    for step in (10, 20):
        loop = Loop(sae, CONFIG, History())
        loop.step_number = step
        checkpoint.save(bucket, LAYOUT, WIRING, loop)
    write_saelens(bucket, LAYOUT, FinishedSae(fold(sae, [20.0], [20.0]), WIRING.hooks, WIRING.hooks, "m"), {})
    monkeypatch.setattr(actor, "LanguageModel", lambda model: lm)
    return Evaluator(bucket.url, "d", model, card, EVALUATION, CONTEXT)


def test_the_evaluator_commits_a_checkpoints_numbers_and_those_of_the_last_beside_the_sae(bucket, evaluator, lm, text):
    settings = settings_of(EVALUATION, "d", CONTEXT)
    for step in (10, 20):
        assert committed(bucket, Job("a", LAYOUT.root, step), settings) is None
        assert evaluator.evaluate(Job("a", LAYOUT.root, step)) == "a"
        assert bucket.exists(LAYOUT.metrics) == (step == 20)
    evaluation = committed(bucket, Job("a", LAYOUT.root, 20), settings)
    hook = HOOKS[0]
    baseline = baseline_of(lm, hook, text, False)
    finished = fold(checkpoint.load_sae(bucket, LAYOUT, 20)[0], [20.0], [20.0]).requires_grad_(False)
    fidelity = measured(lm, finished, hook, text, baseline, False)
    r = evaluation.result
    assert (r.hook, r.layer, r.site, r.architecture, r.width, r.sparsity) == (hook.name, 2, "resid_post", "jumprelu", F, 0.5)
    assert (r.step, r.tokens, r.path) == (20, 20 * 1024, LAYOUT.checkpoint(20).root)
    assert (r.l0, r.fvu, r.dead_fraction, r.loss_spliced) == (fidelity.l0, fidelity.fvu, fidelity.dead_fraction, fidelity.loss_spliced)
    assert (r.loss_clean, r.loss_zero_ablated, r.loss_mean_ablated) == (
        baseline.loss_clean, baseline.loss_zero_ablated, baseline.loss_mean_ablated
    )  # fmt: skip
    assert r.delta_loss == r.loss_spliced - r.loss_clean
    assert r.recovered_zero == pytest.approx(1 - r.delta_loss / (r.loss_zero_ablated - r.loss_clean), rel=1e-9)
    assert r.recovered_mean == pytest.approx(1 - r.delta_loss / (r.loss_mean_ablated - r.loss_clean), rel=1e-9)
    assert evaluation.evaluated_tokens == int(text.is_row.sum()) and evaluation.histogram == fidelity.histogram
    assert Evaluation.read(bucket, LAYOUT.metrics) == evaluation


def test_a_committed_evaluation_is_not_done_again_unless_its_settings_differ(bucket, evaluator, monkeypatch):
    job = Job("a", LAYOUT.root, 20)
    evaluator.evaluate(job)
    monkeypatch.setattr(actor, "measure", lambda *arguments: pytest.fail("measured twice"))
    assert evaluator.evaluate(job) == "a"
    assert committed(bucket, job, settings_of(EVALUATION, "d", CONTEXT))
    other = EVALUATION.model_copy(update={"splice_special": True})
    assert committed(bucket, job, settings_of(other, "d", CONTEXT)) is None
    assert committed(bucket, job, settings_of(EVALUATION, "d", 2 * CONTEXT)) is None
    smaller = EVALUATION.model_copy(update={"sequences_per_forward": 1})
    assert committed(bucket, job, settings_of(smaller, "d", CONTEXT)), "how many at once decides no number"


def test_an_evaluation_that_dies_before_its_commit_is_done_whole_the_next_time(bucket, evaluator, monkeypatch):
    """What is written last is what counts as done, so that nothing else can be missing then."""
    job, written, write = Job("a", LAYOUT.root, 20), [], type(bucket).write
    monkeypatch.setattr(type(bucket), "write", lambda self, path, *parts: (written.append(path), write(self, path, *parts)))
    evaluator.evaluate(job)
    assert written == [LAYOUT.metrics, LAYOUT.checkpoint(20).metrics]


def test_an_evaluator_that_was_asked_to_stop_begins_nothing(bucket, evaluator):
    evaluator.stop()
    with pytest.raises(Stopped):
        evaluator.evaluate(Job("a", LAYOUT.root, 20))
    assert not bucket.exists(LAYOUT.checkpoint(20).metrics)


class Changed:
    """A language model whose activations at a hook are changed on the way."""

    def __init__(self, lm: LanguageModel, change, hook: Hook = HOOKS[0]):
        self._lm, self._change, self._hook = lm, change, hook
        self.device = lm.device

    def visit(self, tokens, hooks, visitor) -> None:
        changed = {self._hook.name: self._change}
        self._lm.visit(tokens, hooks, lambda name, x: visitor(name, changed.get(name, lambda x, tokens: x)(x.clone(), tokens)))

    def capture(self, tokens, hooks):
        captured: dict[str, torch.Tensor] = {}
        self.visit(tokens, hooks, captured.__setitem__)
        return captured

    def token_losses(self, tokens, edits):
        return self._lm.token_losses(
            tokens, {hook: (lambda x, edit=edit: edit(self._change(x.clone(), tokens))) for hook, edit in edits.items()}
        )


def broken(how: str):
    def change(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if how == "nan":
            x[0, 3, 5] = math.nan
        return torch.full_like(x, 0.1) if how == "constant" else x

    return change


@pytest.mark.parametrize(
    ("how", "kind", "named"),
    [
        ("nan", NotFinite, "the activations of the evaluation's text hold a NaN"),
        ("constant", InputError, "rows of the evaluation's text are"),
    ],
)
def test_a_hook_at_which_nothing_can_be_measured_is_named_once_and_for_all(bucket, evaluator, lm, monkeypatch, how, kind, named):
    evaluator._lm = Changed(lm, broken(how))
    for step in (10, 20):
        with pytest.raises(kind, match=f"^{HOOKS[0].name}: .*{named}"):
            evaluator.evaluate(Job("a", LAYOUT.root, step))
        monkeypatch.setattr(actor, "measure_baseline", lambda *arguments: pytest.fail("tried again for each checkpoint"))
    assert committed(bucket, Job("a", LAYOUT.root, 20), settings_of(EVALUATION, "d", CONTEXT)) is None


def test_an_sae_that_gives_no_finite_number_is_named_and_nothing_is_committed(bucket, evaluator, monkeypatch):
    monkeypatch.setattr(Sae, "reconstruct", lambda self, x: (torch.zeros(len(x), F), torch.full_like(x, math.nan)))
    with pytest.raises(NotFinite, match=f"^{LAYOUT.checkpoint(20).root}: fvu is nan"):
        evaluator.evaluate(Job("a", LAYOUT.root, 20))
    assert not bucket.exists(LAYOUT.checkpoint(20).metrics)


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b"\x00" * 40])
def test_a_damaged_evaluation_is_none_and_is_made_again(bucket, evaluator, damage):
    job, path = Job("a", LAYOUT.root, 20), LAYOUT.checkpoint(20).metrics
    evaluator.evaluate(job)
    whole = bucket.read(path)
    for damaged in (damage, checksummed_record({"result": {}, "histogram": {}}), checksummed_record({"another": "record"})):
        bucket.write(path, damaged)
        assert committed(bucket, job, settings_of(EVALUATION, "d", CONTEXT)) is None
    assert evaluator.evaluate(job) == "a" and bucket.read(path) == whole


def test_with_an_outlier_filter_figures_stand_on_the_rows_of_training_too(bucket, evaluator, model, card, lm, text, monkeypatch):
    """A sink that training never saw decides the figures of all rows: here the first token after each BOS."""

    def sinks(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        x[:, 1] *= 1000
        return x

    changed, hook = Changed(lm, sinks), HOOKS[0]
    limit = 50 * float(lm.capture(text.tokens, [hook])[hook.name].norm(dim=-1).median())
    stats = (HookStats(name=hook.name, d=D, scale=20.0, mean=pack_vector(np.zeros(D)), norm_limit=limit),
             HookStats(name="blocks.3.hook_mlp_out", d=D, scale=1.0, mean=pack_vector(np.zeros(D)), norm_limit=1e9))  # fmt: skip
    manifest = DatasetManifest(
        dataset="d", identity={}, model="m", context_length=CONTEXT, dtype="float32", hooks=stats, rows_per_shard=64, shards=1, seed=0,
        calibration_rows=9,
    )  # fmt: skip
    bucket.create(DatasetLayout("d").manifest, checksummed_record(manifest.model_dump(mode="json")))
    monkeypatch.setattr(actor, "LanguageModel", lambda model: changed)
    filtered = Evaluator(bucket.url, "d", model, card, EVALUATION, CONTEXT, 50.0)
    job = Job("a", LAYOUT.root, 20)
    filtered.evaluate(job)
    assert committed(bucket, job, settings_of(EVALUATION, "d", CONTEXT)) is None, "figures without the filter would be done anew"
    evaluation = committed(bucket, job, settings_of(EVALUATION, "d", CONTEXT, 50.0))
    rows = text.is_row.clone()
    rows[:, 1] = False
    kept = replace(text, is_row=rows)
    finished = fold(checkpoint.load_sae(bucket, LAYOUT, 20)[0], [20.0], [20.0]).requires_grad_(False)
    baseline = baseline_of(changed, hook, kept, False)
    fidelity = measured(changed, finished, hook, kept, baseline, False)
    r = evaluation.result
    assert (r.l0_kept, r.fvu_kept, evaluation.kept_tokens) == (fidelity.l0, fidelity.fvu, int(rows.sum()))
    assert r.delta_loss_kept == fidelity.loss_spliced - baseline.loss_clean
    assert evaluation.evaluated_tokens == int(text.is_row.sum()) > evaluation.kept_tokens and r.fvu != r.fvu_kept
    page = render_report("t", {}, [evaluation], {})
    assert "FVU (kept rows)" in page and f"The {evaluation.kept_tokens:,} evaluated tokens whose" in page


def test_fewer_sequences_than_were_reserved_can_be_evaluated_and_more_are_refused(bucket, evaluator, model, card):
    smaller = Evaluator(bucket.url, "d", model, card, EVALUATION.model_copy(update={"sequences": 2}), CONTEXT)
    assert len(smaller._texts[0].tokens) == 2
    with pytest.raises(CorpusError, match=f"d reserved {S} sequences for evaluation, not {S + 1}"):
        Evaluator(bucket.url, "d", model, card, EVALUATION.model_copy(update={"sequences": S + 1}), CONTEXT)


def test_the_evaluator_probes_latents_where_the_sweep_asks_for_it(bucket, evaluator, model, card, tmp_path):
    """A word decides the target, so the dense probe finds it; the settings say that probes were asked for."""
    rows = [f'"{word} number {i}",{word}' for i in range(24) for word in ("import", "return")]
    (tmp_path / "words.csv").write_text("prompt,target\n" + "\n".join(rows))
    asked = EVALUATION.model_copy(update={"probes": ProbesConfig(source=str(tmp_path), k=(1, 2))})
    probing = Evaluator(bucket.url, "d", model, card, asked, CONTEXT)
    for step in (10, 20):
        probing.evaluate(Job("a", LAYOUT.root, step))
    evaluation = committed(bucket, Job("a", LAYOUT.root, 20), settings_of(asked, "d", CONTEXT))
    summary = ProbeSummary.of(evaluation.probes)
    assert summary.tasks == 1 and list(summary.auc) == [1, 2] and {score.task for score in evaluation.probes} == {"words"}
    assert len(evaluation.probes) == 3 * 2 + 1 and all(score.prompts == 48 for score in evaluation.probes)
    assert committed(bucket, Job("a", LAYOUT.root, 20), settings_of(EVALUATION, "d", CONTEXT)) is None
    assert summary.residual > 0.9
