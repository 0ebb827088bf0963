"""An SAE whose latents are divided over several processes trains as it does in one."""

from dataclasses import dataclass

import pytest
import torch
from support.sae_reference import quick
from support.sparse_kinds import KINDS, B, F, make
from support.wide import on_ranks

from scopemill.proto.errors import RankLost
from scopemill.trainer.config.recipe import UNDIVIDED, SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.parallel.shards import DistributedShard, LatentShard, is_sharded
from scopemill.trainer.sae import objective, weights
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.sae.weights import unit_rows
from scopemill.trainer.sparse.codes import SparsePre
from scopemill.trainer.training import loop
from scopemill.trainer.training.history import History, Row
from scopemill.trainer.training.loop import Loop

STEPS = 6
DIVIDED = [kind for kind in KINDS if kind[0] not in UNDIVIDED]
Tensors = dict[str, torch.Tensor]


@dataclass
class Trained:
    sae: Tensors
    state: Tensors
    rows: list[Row]
    replicas: list[Tensors]  # of each part: what all have


def train(config: SaeConfig, whole: Sae, shard: LatentShard, dead: int = 0) -> Trained:
    """From the weights of ``whole``, which stays as it is; the first ``dead`` latents count as dead."""
    mine = initial_sae(config, whole.shape, torch.zeros(whole.shape.d_out), shard)
    shard.scatter(mine.state_dict(), whole.state_dict)
    training = Loop(mine, config, History())
    training.tokens_since_fired[: max(0, dead - shard.start)] = config.dead_after_tokens
    for i in range(STEPS):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(B, whole.shape.d_in, generator=generator)
        training.step(x, None if whole.shape.autoencoder else torch.randn(B, whole.shape.d_out, generator=generator))
    replicated = {name: tensor for name, tensor in mine.state_dict().items() if not is_sharded(name, tensor)}
    return Trained(shard.gather(mine.state_dict()), shard.gather(training.state()), training.history.rows, [replicated])


def divided(parts: int, config: SaeConfig, whole: Sae, dead: int = 0) -> Trained:
    each = on_ranks(parts, config.width, lambda shard: train(config, whole, shard, dead))
    for other in each[1:]:
        each[0].replicas += other.replicas
    return each[0]


def agree(found: Trained, wanted: Trained) -> None:
    for mine, its in ((found.sae, wanted.sae), (found.state, wanted.state)):
        assert mine.keys() == its.keys()
        for name, tensor in its.items():
            assert mine[name].dtype == tensor.dtype and mine[name].shape == tensor.shape
            torch.testing.assert_close(mine[name].double(), tensor.double(), rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    for row, its in zip(found.rows, wanted.rows, strict=True):
        assert (row.step, row.tokens, row.dead_latents) == (its.step, its.tokens, its.dead_latents)
        for figure in ("loss", "reconstruction", "sparsity", "l0", "fvu"):
            assert getattr(row, figure) == pytest.approx(getattr(its, figure), rel=1e-5, abs=1e-7), figure
    for other in found.replicas[1:]:
        assert all(torch.equal(tensor, found.replicas[0][name]) for name, tensor in other.items()), "the same bits everywhere"


def quickly(word: str, activation: str, **fields) -> tuple[SaeConfig, Sae]:
    """With updates that are large and whole from the first step on."""
    return make(word, activation, **dict(learning_rate=0.01, lr_warmup_steps=0, sparsity_warmup_steps=0, log_every=2) | fields)


@pytest.mark.parametrize("way", ["dense", "sparse"])
@pytest.mark.parametrize(("word", "activation"), DIVIDED)
def test_parts_take_the_steps_of_the_whole(word, activation, way, monkeypatch):
    share = 1.0 if way == "sparse" else 0.0
    monkeypatch.setattr(loop, "SPARSE_BELOW", share + 0.1)
    monkeypatch.setattr(loop, "DENSE_ABOVE", share)
    sparse_steps = []
    monkeypatch.setattr(objective, "SparsePre", lambda *arguments: sparse_steps.append(1) or SparsePre(*arguments))
    config, whole = quickly(word, activation, dead_after_tokens=2 * B)
    wanted = train(config, whole, LatentShard(F))
    assert bool(sparse_steps) == (way == "sparse")
    assert any(row.dead_latents for row in wanted.rows) == (activation in ("topk", "batchtopk")), "AuxK has something to do"
    for parts in (2, 3):
        agree(divided(parts, config, whole), wanted)


OPTIONS = {
    "clipped": ("jumprelu", "jumprelu", {"clip_gradient": 0.5}),
    "clipped transcoder with a skip": ("skip_transcoder", "jumprelu", {"clip_gradient": 0.5}),
    "accumulated": ("gated", "gated", {"accumulate": 2}),
    "layer norm": ("topk", "topk", {"normalization": "layer_norm", "initial_decoder_bias": "zero"}),
    "target L0": ("jumprelu", "jumprelu", {"penalty": "target_l0", "sparsities": [7], "bandwidth": 0.3}),
    "frequency": ("jumprelu", "jumprelu", {"frequency_limit": 0.1, "bandwidth": 0.3}),
    "tanh": ("crosscoder", "jumprelu", {"penalty": "tanh"}),
    "pre-activation loss": ("jumprelu", "jumprelu", {"pre_activation_coefficient": 0.01}),
    "thresholds from quantiles": ("jumprelu", "jumprelu", {"initial_l0": 12}),
    "thresholds from one quantile": ("jumprelu", "jumprelu", {"initial_l0": 2}),
    "more kept than a part holds": ("topk", "topk", {"sparsities": [90]}),
    "more of a batch kept than a part holds": ("batchtopk", "batchtopk", {"sparsities": [90]}),
    "more dead ones revived than a part holds": ("topk", "topk", {"auxk_latents": 90, "dead_after_tokens": B, "sparsities": [2]}),
    "first moments, decay and one matrix": ("jumprelu", "jumprelu", {"adam_beta1": 0.9, "weight_decay": 0.1, "tied_weights": True}),
    "prefixes on their own": ("matryoshka", "jumprelu", {"detached_prefixes": True, "prefix_coefficients": [0.1, 0.2, 0.5, 0.8, 1]}),
    "ends of prefixes inside a part": ("matryoshka", "jumprelu", {"prefixes": [0.1, 0.37, 0.6, 1]}),
}


@pytest.mark.parametrize(("word", "activation", "fields"), OPTIONS.values(), ids=OPTIONS)
def test_what_depends_on_all_latents_is_found_out_over_all_parts(word, activation, fields):
    config, whole = quickly(word, activation, **fields)
    agree(divided(3, config, whole), train(config, whole, LatentShard(F)))


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dense", "sparse"])
def test_dead_latents_may_all_be_in_one_part(share, monkeypatch):
    monkeypatch.setattr(loop, "SPARSE_BELOW", share)
    monkeypatch.setattr(loop, "DENSE_ABOVE", share)
    config, whole = quickly("topk", "topk", dead_after_tokens=10**6)
    with torch.no_grad():
        whole.b_enc[:30] -= 100
    wanted = train(config, whole, LatentShard(F), dead=30)
    assert wanted.rows[-1].dead_latents == 30
    agree(divided(3, config, whole, dead=30), wanted)


def test_products_in_bfloat16_are_added_up_in_float32():
    config, whole = quickly("jumprelu", "jumprelu", precision="bfloat16")
    found, wanted = divided(2, config, whole), train(config, whole, LatentShard(F))
    assert [row.loss for row in found.rows] == pytest.approx([row.loss for row in wanted.rows], rel=0.01)
    assert torch.equal(found.replicas[0]["b_dec"], found.replicas[1]["b_dec"]) and found.sae["b_dec"].dtype == torch.float32


def test_a_million_latents():
    config = quick(architecture="topk", width=2**20, sparsity=32, batch_size=16, tokens=16 * 9, log_every=1, learning_rate=0.01)
    whole = initial_sae(config, Shape.square(8), torch.zeros(8))
    x = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0))

    def steps(shard: LatentShard) -> tuple[bool, Tensors]:
        training = Loop(initial_sae(config, Shape.square(8), torch.zeros(8), shard), config, History())
        for batch in x:
            training.step(batch)
        return training.sparse, shard.gather(training.sae.state_dict())

    (sparse, found), _ = on_ranks(2, config.width, steps)
    assert sparse and found["W_enc"].shape == (2**20, 8)
    for name, tensor in steps(LatentShard(config.width))[1].items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-5, atol=2e-5)
        assert not torch.equal(tensor, whole.state_dict()[name]), "it was trained"


def test_one_part_is_the_whole_bit_for_bit():
    config, whole = quickly("topk", "topk", dead_after_tokens=2 * B)
    one, wanted = divided(1, config, whole), train(config, whole, LatentShard(F))
    assert all(torch.equal(one.sae[name], tensor) for name, tensor in wanted.sae.items())


def test_the_same_parts_give_the_same_bits_again():
    config, whole = quickly("batchtopk", "batchtopk")
    once, again = (divided(3, config, whole) for _ in range(2))
    assert all(torch.equal(once.sae[name], tensor) for name, tensor in again.sae.items())


@pytest.mark.parametrize("rows", [1, 7, 50, 64])
def test_rows_drawn_by_parts_are_those_drawn_at_once(rows, monkeypatch):
    monkeypatch.setattr(weights, "ROWS_AT_ONCE", 7)
    generators = [torch.Generator().manual_seed(3) for _ in range(4)]
    bound = (6 / 5) ** 0.5
    drawn = torch.empty(rows, 5).uniform_(-bound, bound, generator=generators[0])
    wanted = drawn / drawn.norm(dim=1, keepdim=True)
    bounds = [0, rows // 3, rows // 2, rows]
    found = [unit_rows(rows, 5, g, first, stop) for g, first, stop in zip(generators[1:], bounds, bounds[1:], strict=False)]
    assert torch.equal(torch.cat(found), wanted)
    assert len({float(torch.rand((), generator=g)) for g in generators}) == 1, "and what is drawn next is the same"


def test_parts_start_as_the_whole():
    config, _ = make("transcoder", "jumprelu")
    shape = make("transcoder", "jumprelu")[1].shape
    wanted = initial_sae(config, shape, torch.arange(12.0)).state_dict()
    (found, *others) = on_ranks(3, F, lambda shard: shard.gather(initial_sae(config, shape, torch.arange(12.0), shard).state_dict()))
    assert others == [{}, {}]
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize(("width", "parts"), [(3, 3), (7, 3), (8, 3), (1000, 7)])
def test_parts_are_as_equal_as_can_be_and_leave_nothing_out(width, parts):
    bounds = on_ranks(parts, width, lambda shard: (shard.start, shard.stop))
    assert bounds[0][0] == 0 and bounds[-1][1] == width
    assert all(one[1] == other[0] for one, other in zip(bounds, bounds[1:], strict=False))
    assert {stop - first for first, stop in bounds} <= {width // parts, -(-width // parts)}


@pytest.mark.parametrize("k", [1, 4, 9, 20])
def test_the_largest_of_each_row_are_chosen_once_even_where_values_are_equal(k):
    values = torch.randint(-3, 4, (40, 20), generator=torch.Generator().manual_seed(0)).float()
    values[:20] = torch.randn(20, 20, generator=torch.Generator().manual_seed(1))

    def kept(shard: DistributedShard) -> torch.Tensor:
        mine = values[:, shard.start : shard.stop]
        largest, index = mine.topk(min(k, shard.local_width), dim=1)
        return torch.full_like(mine, -torch.inf).scatter(1, index, shard.global_top_k(largest, k))

    found = torch.cat(on_ranks(3, 20, kept), dim=1)
    assert ((found > -torch.inf).sum(1) == k).all()
    assert torch.equal(found.sort(dim=1, descending=True).values[:, :k], values.sort(dim=1, descending=True).values[:, :k])


def test_what_all_parts_say_is_known_to_each():
    def said(shard: DistributedShard) -> tuple:
        least = shard.smallest(torch.arange(3.0)[shard.start :]), shard.smallest(torch.empty(0))
        return shard.all_true(shard.start >= 0), shard.all_true(shard.start != 3), shard.total(shard.local_width), *least

    assert on_ranks(3, 9, said) == [(True, False, 9, 0.0, None)] * 3


def test_a_batch_that_is_dense_in_one_part_is_dense_in_all():
    """Where the k-th largest of the batch is looked for among the entries that a scan found, all parts have to look."""
    config, whole = quickly("batchtopk", "batchtopk")

    def select(shard: DistributedShard) -> bool:
        mine = initial_sae(config, whole.shape, torch.zeros(16), shard)
        mine.activation.threshold.fill_(0.5)
        products = torch.full((B, shard.local_width), 1.0 if shard.leads else 0.0)
        return mine.activation.select(products, torch.zeros(shard.local_width), config, max_entries=B * config.k) is None

    assert on_ranks(2, F, select) == [True, True]


def test_who_is_gone_is_noticed_by_all_others():
    def one_dies(shard: DistributedShard) -> str:
        if shard.start:
            raise ValueError("an error of its own")
        shard.total(1)
        return "went on"

    with pytest.raises(RankLost, match="a process that holds other latents of this SAE is gone"):
        on_ranks(2, 8, one_dies)
