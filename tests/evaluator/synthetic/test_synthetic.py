"""The world of planted features and the scores against it, by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from support.sae_reference import quick

from scopemill.evaluator.synthetic.comparison import compare, true_l0
from scopemill.evaluator.synthetic.truth import matched, score
from scopemill.evaluator.synthetic.world import World, WorldConfig, before_the_tree, chosen, generations, spread, zipf
from scopemill.proto.errors import InputError
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.registry import initial_sae

CONFIG = WorldConfig(features=60, d=12, roots=4, branching=3, depth=2, most=0.4, least=0.05)


@pytest.fixture(scope="module")
def world() -> World:
    return World(CONFIG)


@pytest.fixture(scope="module")
def strengths(world) -> torch.Tensor:
    return torch.cat([world.strengths(k, 4000) for k in range(10)])


def test_batches_are_a_pure_function_of_seed_and_number(world):
    again = World(CONFIG)
    assert again.strengths(7, 50).equal(world.strengths(7, 50)) and again.directions.equal(world.directions)
    assert not world.strengths(8, 50).equal(world.strengths(7, 50))
    other = World(WorldConfig(**{**CONFIG.__dict__, "seed": 1}))
    assert not other.strengths(7, 50).equal(world.strengths(7, 50))
    first, second = itertools.islice(world.batches(50, start=7), 2)
    assert first.equal(world.rows(world.strengths(7, 50))) and second.equal(world.rows(world.strengths(8, 50)))


def test_frequencies_are_zipfs_between_most_and_least():
    p = zipf(CONFIG).double().numpy()
    rank = np.arange(1, 61.0)
    assert p[0] == pytest.approx(0.4) and p[-1] == pytest.approx(0.05)
    slope = (p - 0.05) / 0.35  # a line through both ends of rank^-1/2
    np.testing.assert_allclose(slope, (rank**-0.5 - 60**-0.5) / (1 - 60**-0.5), atol=1e-6)


def test_trees_number_their_features_generation_by_generation():
    (roots, children), (parents, grandchildren) = generations(CONFIG)
    assert roots.tolist() == [0, 1, 2, 3] and children.tolist() == [[4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]]
    assert parents.tolist() == list(range(4, 16)) and grandchildren.flatten().tolist() == list(range(16, 52))
    assert [len(p) for p, _ in generations(WorldConfig(features=10, d=4, roots=2, branching=3, depth=3))] == [2], "as many as fit"


def test_a_child_fires_with_its_parent_alone_and_without_its_siblings(world, strengths):
    fires = strengths > 0
    for parents, children in world.generations:
        below = fires[:, children]
        assert (below.sum(2) <= fires[:, parents]).all()
        assert below.any()


def test_features_outside_trees_fire_as_often_as_asked_and_roots_too(world, strengths):
    frequency = (strengths > 0).double().mean(0)
    free = [*range(4), *range(52, 60)]
    wanted = world.probabilities[free].double()
    assert ((frequency[free] - wanted).abs() < 5 * (wanted * (1 - wanted) / len(strengths)).sqrt()).all()


def test_drawn_children_make_up_for_parents_and_siblings():
    wanted = torch.tensor([0.5, 0.1, 0.2, 0.05])
    trees = [(torch.tensor([0]), torch.tensor([[1, 2, 3]]))]
    share = np.array([0.2, 0.4, 0.1])
    expected = share * (1 + share.sum() - share)
    np.testing.assert_allclose(before_the_tree(wanted, trees).numpy(), [0.5, *expected], rtol=1e-6)
    assert before_the_tree(torch.tensor([0.1, 0.4, 0.4, 0.4]), trees)[1:].tolist() == [1, 1, 1], "never above 1"


def test_of_children_that_fire_each_is_kept_as_often():
    g = torch.Generator().manual_seed(0)
    children = torch.tensor([True, False, True, True]).expand(30_000, 1, 4)
    kept = chosen(torch.ones(30_000, 1, dtype=torch.bool), children, g)
    assert (kept.sum(2) == 1).all() and kept[..., 1].sum() == 0
    assert (kept.double().mean(0)[0, [0, 2, 3]] - 1 / 3).abs().max() < 0.015
    assert not chosen(torch.zeros(5, 1, dtype=torch.bool), children[:5], g).any()


def test_magnitudes_are_normal_around_a_mean_that_falls_with_rank(world, strengths):
    for feature, mean in ((0, 5.0), (59, 4.0)):
        fired = strengths[:, feature][strengths[:, feature] > 0].double()
        assert fired.mean().item() == pytest.approx(mean, abs=4 * 0.5 / math.sqrt(len(fired)))
        assert fired.std().item() == pytest.approx(0.5, rel=0.1)


def test_two_features_fire_together_as_their_gaussians_correlation_says(strengths):
    """P(both) of a bivariate normal beyond two thresholds, integrated by hand; a strong correlation so that it shows."""
    strong = World(WorldConfig(features=6, d=4, roots=0, depth=0, rank=2, correlation=0.6, most=0.5, least=0.3))
    fires = torch.cat([strong.strengths(k, 20_000) for k in range(4)]) > 0
    rho = (strong._factors @ strong._factors.T).double()
    z = np.linspace(-9, 9, 20_001)
    for i, j in itertools.combinations(range(6), 2):
        a, b = (norm.isf(float(strong.probabilities[f])) for f in (i, j))
        inner = norm.sf((b - rho[i, j].item() * z) / math.sqrt(1 - rho[i, j].item() ** 2)) * norm.pdf(z) * (z > a)
        expected = inner.sum() * (z[1] - z[0])
        assert (fires[:, i] & fires[:, j]).double().mean().item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("features, d", [(60, 12), (8, 12)])
def test_directions_are_unit_and_as_far_apart_as_can_be(features, d):
    rows = spread(torch.randn(features, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    gram = rows @ rows.T
    assert torch.allclose(gram.diagonal(), torch.ones(features, dtype=torch.float64))
    mean_square = (gram.square().sum() - features) / (features * (features - 1))
    welch = max(0.0, (features - d) / (d * (features - 1)))
    assert mean_square.item() == pytest.approx(welch, rel=1e-3, abs=1e-12)


def test_a_world_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="most to least"):
        WorldConfig(most=0.1, least=0.2)
    with pytest.raises(InputError, match="cannot have 20 roots"):
        WorldConfig(features=10, roots=20)


def knowing(world: World, features: list[int], threshold: float):
    """An SAE of one latent for each feature, which fires where the feature's product is above the threshold."""
    sae = initial_sae(quick(width=len(features), sparsity=1), Shape.square(world.config.d), torch.zeros(world.config.d))
    with torch.no_grad():
        sae.W_enc.copy_(world.directions[features])
        sae.W_dec.copy_(world.directions[features])
        sae.b_enc.fill_(0)
        sae.b_dec.fill_(0)
        sae.activation.threshold.fill_(threshold)
    return sae.requires_grad_(False)


def test_scores_are_those_counted_by_hand(world):
    sae = knowing(world, [0, 5, 5, 58], 2.5)
    found = score(sae, world, rows=3000, batch_size=1000, start=50)
    strengths = torch.cat([world.strengths(50 + k, 1000) for k in range(3)])
    x = world.rows(strengths)
    fires, truth = (sae.encode(x) > 0).numpy(), (strengths[:, [0, 5, 5, 58]] > 0).numpy()
    precision = [(f & t).sum() / f.sum() for f, t in zip(fires.T, truth.T, strict=True)]
    recall = [(f & t).sum() / t.sum() for f, t in zip(fires.T, truth.T, strict=True)]
    assert found.precision == pytest.approx(np.mean(precision)) and found.recall == pytest.approx(np.mean(recall))
    assert found.f1 == pytest.approx(np.mean([2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]))
    assert found.uniqueness == 0.75 and found.dead_fraction == 0
    # one of the two equal latents has to take another feature: the one that is nearest to it
    cosine = (world.directions[5] @ world.directions.T).abs()
    assert found.mcc == pytest.approx((3 + cosine[[i for i in range(60) if i not in (0, 5, 58)]].max().item()) / 4, rel=1e-5)
    assert found.l0 == pytest.approx(fires.sum(1).mean()) and found.true_l0 == pytest.approx((strengths > 0).sum(1).double().mean())
    error = (x - sae(x)).double().square().sum() / (x - x.mean(0)).double().square().sum()
    assert found.fvu == pytest.approx(error.item(), rel=1e-5)


def test_the_best_matching_is_the_best_of_all():
    table = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    best = max(sum(table[i, j].item() for i, j in enumerate(order)) for order in itertools.permutations(range(6), 4))
    assert matched(table) == pytest.approx(best / 4) == pytest.approx(matched(table.T))


def test_what_is_trained_finds_features_and_more_with_more_steps():
    world = World(WorldConfig(features=24, d=24, roots=2, branching=3, depth=1, most=0.3, least=0.05))
    short, long = (next(compare(world, ["topk"], 24, 3, steps, 256, learning_rate=1e-2)) for steps in (2, 250))
    assert long.architecture == "topk" and long.sparsity == 3 and long.truth.l0 == pytest.approx(3, abs=0.3)
    assert long.truth.mcc > max(0.8, short.truth.mcc + 0.2) and long.truth.f1 > short.truth.f1 + 0.2
    assert true_l0(world) == pytest.approx(long.truth.true_l0, rel=0.05)
