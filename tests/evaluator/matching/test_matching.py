"""Twins, splitting and stability against brute force in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.evidence_world import ROWS, SHARDS, World
from support.finished_saes import finished_sae

from scopemill.evaluator.evidence.neighbours import Neighbours, by_cofiring
from scopemill.evaluator.matching import cosine
from scopemill.evaluator.matching.compare import Firings, check_same_model, compare, member_of
from scopemill.evaluator.matching.cosine import nearest, space_of
from scopemill.evaluator.matching.firings import Sampled, by_phi, chosen_shards, on_common_rows, sample_firings, shared
from scopemill.evaluator.matching.members import Member, differing, every_pair, related_pairs
from scopemill.evaluator.matching.similarity import random_cosines
from scopemill.evaluator.matching.splitting import children
from scopemill.evaluator.matching.twins import other_folder, relative_folder, twins_in, twins_of
from scopemill.proto.errors import CorruptObject, InputError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import write_finished

RESID = "blocks.{}.hook_resid_post"


def by_hand(own: np.ndarray, other: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """The k nearest of each row, by cosine in float64, smaller latents first among equals."""
    found = []
    for a in own.astype(np.float64):
        scored = []
        for at, b in enumerate(other.astype(np.float64)):
            if (a @ a) * (b @ b) > 0:
                scored.append((-(a @ b) / math.sqrt((a @ a) * (b @ b)), at))
        found.append([(at, -score) for score, at in sorted(scored)[:k]])
    return found


def as_lists(near: Neighbours) -> list[list[tuple[int, float]]]:
    return [[(int(a), float(s)) for a, s in zip(*row, strict=True) if a >= 0] for row in zip(*near, strict=True)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_nearest_latents_are_those_of_brute_force(seed, own, other, d, k):
    random = np.random.default_rng(seed)
    # Few values of few bits: equal cosines, repeated rows, and rows of no norm.
    a, b = (random.integers(-1, 2, (n, d)).astype(np.float32) for n in (own, other))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosine, "ROWS", 7)
        patch.setattr(cosine, "TILE", 11)
        patch.setattr(cosine, "RESCORED", 64)
        patch.setattr(cosine, "SPARE", 60)  # as many ties as there may be
        found = as_lists(nearest(torch.from_numpy(a), torch.from_numpy(b), k))
    wanted = by_hand(a, b, min(k, other))
    assert [[s for _, s in row] for row in found] == [pytest.approx([s for _, s in row], abs=1e-6) for row in wanted]
    for mine, its in zip(found, wanted, strict=True):
        scores = [round(score, 9) for _, score in its]
        if len(set(scores)) == len(scores):  # in float64 too, equal cosines may differ in their last bit
            assert [at for at, _ in mine[:-1]] == [at for at, _ in its[:-1]]


def test_among_equal_rows_the_first_comes_first():
    row = torch.randn(1, 24, generator=torch.Generator().manual_seed(0))
    near = nearest(row, row.repeat(5, 1), 3)
    assert near.latents.tolist() == [[0, 1, 2]] and near.scores.tolist() == [[1.0, 1.0, 1.0]]


def sampled(random: np.random.Generator, width: int, rows: int, share: float = 0.2) -> tuple[Sampled, np.ndarray]:
    fires = random.random((rows, width)) < share * random.random(width)
    row, latent = np.nonzero(fires)
    names = np.arange(rows, dtype=np.int64) * 3 + 5
    return Sampled(width, latent.astype(np.int32), names[row], np.ones(len(row), np.float32), names), fires


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 30), st.integers(1, 60))
def test_phi_is_the_correlation_of_firing(seed, own, other, rows):
    random = np.random.default_rng(seed)
    (a, a_fires), (b, b_fires) = (sampled(random, width, rows) for width in (own, other))
    found, k = as_lists(by_phi(a, b, 4)), min(4, other)
    for i, mine in enumerate(found):
        with np.errstate(invalid="ignore"):
            values = [np.corrcoef(a_fires[:, i], b_fires[:, j])[0, 1] if rows > 1 else math.nan for j in range(other)]
        wanted = sorted(-v for v in values if v > 1e-9)[:k]
        assert [-s for _, s in mine] == pytest.approx(wanted, abs=1e-6)
        assert all(values[j] == pytest.approx(score, abs=1e-6) for j, score in mine)
    pairs = np.array([(i, j) for i in range(own) for j in range(other)])
    assert shared(a, b, pairs).tolist() == [int((a_fires[:, i] & b_fires[:, j]).sum()) for i, j in pairs]


def test_an_sae_with_itself_is_its_cofiring_and_each_latent_first():
    one, _ = sampled(np.random.default_rng(3), 20, 200)
    with_itself, alone = by_phi(one, one, 4), by_cofiring(one.latents, one.rows, len(one.drawn), 20, 3)
    for latent in np.flatnonzero(one.fired):
        assert with_itself.latents[latent, 0] == latent and with_itself.scores[latent, 0] == 1
        assert with_itself.latents[latent, 1:].tolist() == alone.latents[latent].tolist()


def test_rows_that_one_lacks_do_not_count():
    one, _ = sampled(np.random.default_rng(4), 9, 50)
    other = one.on(one.drawn[::2])
    a, b = on_common_rows(one, other)
    assert np.array_equal(a.drawn, other.drawn) and np.array_equal(a.rows, b.rows)


def test_shards_lie_over_the_whole_text():
    assert chosen_shards(range(100), 100_000, 5_000) == ([0, 20, 40, 60, 80], 1.0)
    assert chosen_shards([7, 9], 2_000, 500) == ([7], 0.5)
    assert chosen_shards([7, 9], 2_000, 10**9) == ([7, 9], 1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("matching") / "bucket", "jumprelu")


def test_sampled_firings_are_those_of_the_sae(world):
    (found,) = sample_firings(world.source(), range(SHARDS), 1.0, [world.sae])
    wanted = sorted((firing.shard << 32) + firing.place for firing in world.firings)
    assert sorted(found.rows.tolist()) == wanted and len(found.drawn) == ROWS * SHARDS
    assert found.l0 == len(world.firings) / (ROWS * SHARDS)
    dense, at = found.as_array().toarray(), {name: i for i, name in enumerate(found.drawn.tolist())}
    assert all(dense[at[(f.shard << 32) + f.place], f.latent] == pytest.approx(f.value, rel=1e-5) for f in world.firings)
    (some,) = sample_firings(world.source(), range(SHARDS), 0.5, [world.sae])
    assert set(some.drawn.tolist()) < set(found.drawn.tolist()) and 100 < len(some.drawn) < 300
    kept = np.isin(found.rows, some.drawn)
    assert np.array_equal(some.rows, found.rows[kept]) and np.array_equal(some.latents, found.latents[kept])


def test_random_directions_have_the_others_spread():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(300, 40, generator=generator)
    flat[:, 3:] *= 0.01  # rows crowd in three dimensions: any two are alike
    own, wide = torch.randn(200, 40, generator=generator), torch.randn(300, 40, generator=generator)
    assert random_cosines(flat, flat).mean() > 0.9 > 0.7 > random_cosines(own, wide).mean()


def member(layer: int = 1, width: int = 16, seed: int = 0, sparsity: float | None = 1e-3, architecture: str = "jumprelu", **more) -> Member:
    hook = (RESID.format(layer),)
    return Member(f"b/saes/{layer}-{width}-{seed}-{sparsity}-{architecture}", hook, hook, architecture, width, seed, sparsity, **more)


def test_saes_of_a_sweep_are_compared_with_the_next_on_each_axis():
    grid = [member(layer, width, 0, sparsity) for layer in (1, 3, 5) for width in (16, 32) for sparsity in (1e-4, 1e-3, 1e-2)]
    pairs = related_pairs(grid)
    assert {axes for *_, axes in pairs} == {("layer",), ("width",), ("sparsity",)}
    assert len(pairs) == 12 + 9 + 12  # 2 steps of 3 layers at 6 places; 1 step of 2 widths at 9; 2 steps of 3 sparsities at 6
    for i, j, axes in pairs:
        assert differing(grid[i], grid[j]) == axes
        if axes == ("layer",):
            assert abs(grid[i].along("layer")[0] - grid[j].along("layer")[0]) == 2


def test_seeds_are_all_compared_and_architectures_by_l0():
    seeds = [member(seed=seed) for seed in range(3)]
    assert [(i, j) for i, j, axes in related_pairs(seeds) if axes == ("seed",)] == [(0, 1), (0, 2), (1, 2)]
    kinds = (("jumprelu", 1e-3, 50.0), ("jumprelu", 1e-2, 9.0), ("topk", 8, 8.0), ("topk", 60, 60.0))
    both = [member(architecture=kind, sparsity=sparsity, l0=l0) for kind, sparsity, l0 in kinds]
    pairs = related_pairs(both)
    assert [(i, j) for i, j, axes in pairs if axes == ("architecture",)] == [(0, 3), (1, 2)]
    assert [(i, j) for i, j, axes in pairs if axes == ("sparsity",)] == [(0, 1), (2, 3)] and len(pairs) == 4
    assert len(list(every_pair(both))) == 6


def test_without_coefficients_a_like_l0_is_the_same_sparsity():
    narrow, wide, dense = (member(width=width, sparsity=None, l0=l0) for width, l0 in ((16, 20.0), (32, 22.0), (32, 80.0)))
    assert differing(narrow, wide) == ("width",) and differing(wide, dense) == ("sparsity",)
    assert [(i, j) for i, j, _ in related_pairs([narrow, wide, dense])] == [(0, 1), (1, 2)]


def test_spaces_are_those_of_the_outputs():
    assert space_of([RESID.format(1)]) == space_of(["blocks.7.hook_mlp_out"]) != space_of(["blocks.1.attn.hook_z"])
    assert space_of(["blocks.1.attn.hook_z"]) != space_of(["blocks.2.attn.hook_z"])


def test_children_have_one_parent_and_an_overlap():
    back = Neighbours(np.array([[1], [0], [1], [-1], [1]], np.int32), np.array([[0.9], [0.8], [0.95], [np.nan], [0.1]], np.float32))
    rows = np.arange(10, dtype=np.int64)
    narrow = Sampled(2, np.array([1] * 6 + [0] * 2, np.int32), np.arange(8), np.ones(8, np.float32), rows)
    wide = Sampled(5, np.array([0, 0, 0, 0, 1, 2], np.int32), np.array([0, 1, 6, 7, 6, 3]), np.ones(6, np.float32), rows)
    found = children(back, 0.4, narrow, wide)
    assert found.parents.tolist() == [0, 1, 1] and found.children.tolist() == [1, 2, 0]
    assert found.overlap.tolist() == [1.0, 1.0, 0.5]
    assert np.isnan(children(back, 0.4, None, None).overlap).all()


def test_twins_are_written_beside_the_evidence_of_both(world, tmp_path):
    """The wider SAE holds every latent of the other one twice: permuted, and half of its copies turned by a little."""
    narrow, source = world.sae, world.source()
    order = torch.randperm(2 * narrow.sae.width, generator=torch.Generator().manual_seed(1))
    sae = finished_sae("jumprelu").sae.__class__(narrow.sae.shape, 2 * narrow.sae.width, type(narrow.sae.activation)(2 * narrow.sae.width))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            own = dict(narrow.sae.named_parameters())[name]
            parameter.copy_(own.repeat(2, *[1] * (own.ndim - 1))[order] if len(own) == narrow.sae.width else own)
    wide = replace(narrow, sae=sae.requires_grad_(False))
    folders = [world.bucket.place(world.root), f"{world.bucket.url}/saes/tiny/wide"]
    write_finished(folders[1], "saelens", wide)
    members = [member_of(folder, one) for folder, one in zip(folders, (narrow, wide), strict=True)]
    firings = Firings()
    assert dict(firings.add(source, range(SHARDS), 1.0, folders, "cpu"))[folders[0]] == pytest.approx(len(world.firings) / 400)
    (done,) = compare(members, list(every_pair(members)), firings)
    assert done.axes == ("width",) and done.forth.mean_max_cosine == pytest.approx(1) and done.forth.share_alike == 1
    assert done.forth.mean_max_phi == pytest.approx(1) and done.forth.random_mean_max_cosine < 0.9 and done.forth.mutual == 1
    assert done.back.mutual == pytest.approx(0.5, abs=0.01), "two latents have one twin, which names one of them back"
    evidence = world.make([[0, 1, 2, 3]])
    (twins,) = twins_of(evidence)
    assert twins.record.rows == ROWS * SHARDS and twins.title == "width: tiny/wide"
    assert other_folder(folders[0], twins.record.other_folder) == folders[1]
    copies = {latent: sorted((order % narrow.sae.width == latent).nonzero()[:, 0].tolist()) for latent in range(narrow.sae.width)}
    for latent, own in copies.items():
        row = twins.of(latent)
        assert row["nearest_latents"][:2] == own == sorted(row["children"]) and row["mutual"]
        if evidence.latent(latent)["fired"] not in (0, ROWS * SHARDS):
            assert row["cofiring_latents"][:2] == own and row["children_overlap"] == [1.0, 1.0]
    (back,) = twins_in(Bucket(folders[1]))
    assert all(back.of(i)["nearest_latents"][0] == int(order[i]) % narrow.sae.width and not back.of(i)["children"] for i in range(8))
    assert not twins_in(evidence.bucket, f"{world.root}/evidence", "of other weights")


def test_what_cannot_be_compared_is_refused(tmp_path):
    z, resid = (finished_sae("jumprelu", model="m") for _ in range(2))
    z = replace(z, inputs=("blocks.1.attn.hook_z",), outputs=("blocks.1.attn.hook_z",))
    members = [member_of(str(tmp_path / name), one) for name, one in (("z", z), ("resid", resid))]
    with pytest.raises(InputError, match="decoder rows are not comparable; give --model and --corpus"):
        compare(members, list(every_pair(members)), Firings())
    with pytest.raises(InputError, match="a is of m and b of n"):
        check_same_model([("a", resid), ("b", replace(resid, model="org/n"))])
    check_same_model([("a", resid), ("b", replace(resid, model="org/m"))])


@pytest.mark.parametrize("bucket", ["s3://b", "/data/b"])
def test_folders_are_relative_within_a_bucket(bucket):
    own, other = f"{bucket}/saes/m/h/width_1k/topk/8-aa", f"{bucket}/saes/m/h/width_2k/topk/8-bb"
    assert relative_folder(own, other) == "../../../width_2k/topk/8-bb" and other_folder(own, "../../../width_2k/topk/8-bb") == other
    for alone in ("hf://x/y", "/elsewhere/sae"):
        assert other_folder(own, relative_folder(own, alone)) == alone


def test_a_damaged_file_of_twins_is_named(tmp_path):
    bucket = Bucket(str(tmp_path))
    bucket.write("evidence/twins/aa.parquet", b"nothing")
    with pytest.raises(CorruptObject, match=r"aa.parquet does not hold twins .* run scopemill match again"):
        twins_in(bucket)
