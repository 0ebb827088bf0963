"""The arithmetic of `make frontier`: frontiers, costs, jobs, and the float64 score beside our own SAEs."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # as for the scripts
from curves import Point, cost_of, frontier, fvu_at  # noqa: E402
from exported import batches  # noqa: E402
from jobs import ARCHITECTURES, FULL, L0S, OURS, PACKAGES, QUICK, Result, merit, others, searches  # noqa: E402
from report import comparison, summary  # noqa: E402
from rows import HELD_OUT_ROWS, float32, given_rows  # noqa: E402
from score import Weights, latents, score  # noqa: E402
from train_ours import weights_of  # noqa: E402

from scopemill import load_sae, save_sae, train_sae  # noqa: E402

LINE = [Point(l0, 0.4 * l0**-0.5, rows, rows / 10) for rows, l0 in ((100, 8), (100, 32), (100, 128))]


def test_a_power_law_is_met_everywhere():
    for l0 in (7, 8, 20, 64, 128, 150):
        assert fvu_at(LINE, l0) == pytest.approx(0.4 * l0**-0.5)


def test_nothing_is_said_far_outside():
    assert fvu_at(LINE, 6) is None and fvu_at(LINE, 160) is None and fvu_at([], 8) is None
    assert fvu_at([Point(32, 0.1)], 32) == 0.1 and fvu_at([Point(32, 0.1)], 64) is None


def test_a_point_that_is_beaten_changes_nothing():
    beaten = Point(40, 0.4 * 32**-0.5)  # less sparse than one with the same FVU
    assert frontier([*LINE, beaten]) == LINE
    assert fvu_at([*LINE, beaten], 50) == fvu_at(LINE, 50)


def test_what_a_quality_costs():
    later = [replace(p, fvu=p.fvu / 2, rows=200, seconds=15) for p in LINE]
    wanted = fvu_at(LINE, 50)
    assert cost_of(LINE + later, "rows", 50, wanted) == 100
    assert cost_of(LINE + later, "rows", 50, wanted * 0.99) == 200
    assert cost_of(LINE + later, "seconds", 50, wanted * 0.99) == 15
    assert cost_of(LINE + later, "rows", 50, wanted * 0.49) is None


def test_jobs_cover_every_package_and_l0_once():
    first, rest = searches(FULL), others(FULL, lambda package, architecture: 3e-3)
    assert len({*first}) == len(PACKAGES) * len(ARCHITECTURES) * 3
    whole = {job for job in rest if job.steps == FULL.steps}
    assert len(whole) == len(PACKAGES) * len(ARCHITECTURES) * len(L0S)
    assert {job.package for job in rest if job.steps < FULL.steps} == {OURS}
    keys = {job.key("1.0", "rows") for job in {*first, *rest}}
    assert len(keys) == len({*first, *rest}) and first[0].key("1.0", "rows") != first[0].key("1.1", "rows")
    assert len({*searches(QUICK), *others(QUICK, lambda package, architecture: 3e-3)}) <= 40


def result(job, l0, fvu, seconds=1.0):
    return Result(job, fvu, l0, 0.01, seconds, seconds)


def test_results_survive_json_and_the_best_rate_is_by_fvu_along_the_frontier():
    job = searches(FULL)[0]
    assert Result.from_json(result(job, 32, 0.1).to_json()) == result(job, 32, 0.1)
    assert merit(result(job, 32, 0.1)) == pytest.approx(merit(result(job, 128, 0.05)))
    assert merit(result(job, 32, math.nan)) == math.inf == merit(result(job, 0, 1.0))


def test_the_comparison_says_what_ours_took(tmp_path):
    jobs = [job for job in others(FULL, lambda package, architecture: 3e-3) if job.architecture == "topk"]
    fvu = {OURS: 0.3, "sae-lens": 0.4, "dictionary-learning": 0.2}
    results = [
        result(job, job.sparsity, fvu[job.package] * job.sparsity**-0.5 * (FULL.steps / job.steps) ** 0.25, job.steps / FULL.steps)
        for job in jobs
    ]
    told = comparison(results, "topk", 32)
    assert told[OURS]["fvu"] == pytest.approx(0.3 * 32**-0.5) and told["sae-lens"]["dead"] == 0.01
    # at half of the rows ours is 1.19 times worse, and sae-lens is 1.33 times worse on all; dictionary-learning's is out of reach
    assert told["sae-lens"]["ours_rows"] == told["sae-lens"]["ours_seconds"] == pytest.approx(0.5, abs=2e-3)
    assert told["dictionary-learning"]["ours_rows"] is None
    summary("test", results, tmp_path)
    assert len(list(tmp_path.glob("test-*.json"))) == 1


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(512, 40, generator=generator).pow(6) @ torch.randn(40, 16, generator=generator) + 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_score_is_that_of_our_own_loaded_sae(architecture, x, tmp_path):
    sparsity = 1e-3 if architecture == "jumprelu" else 5
    save_sae(train_sae(iter(x.split(64)), architecture, 64, sparsity, steps=8, batch_size=64), tmp_path)
    loaded = load_sae(str(tmp_path)).double()
    f, rebuilt = loaded.reconstruct(x.double())
    judged = score(weights_of(loaded), x.numpy())
    assert judged.fvu == pytest.approx(((x - rebuilt).square().sum() / (x - x.double().mean(0)).square().sum()).item(), rel=1e-9)
    assert judged.l0 == pytest.approx((f > 0).sum().item() / len(x)) and judged.l0 > 1
    assert judged.dead == pytest.approx(1 - (f > 0).any(0).double().mean().item())


def test_topk_keeps_the_largest_and_only_positive_ones():
    weights = Weights(np.eye(3), np.zeros(3), np.eye(3), np.zeros(3), k=2)
    assert latents(weights, np.array([[3.0, 1.0, 2.0], [-1.0, -3.0, 4.0]])).tolist() == [[3, 0, 2], [0, 0, 4]]


def test_batches_keep_the_order_of_the_rows(tmp_path):
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.save(tmp_path / "train.npy", rows)
    given = batches({"rows": str(tmp_path / "train.npy"), "steps": 4, "batch": 4})
    assert torch.cat(given).equal(torch.from_numpy(rows[:16])) and [len(batch) for batch in given] == [4] * 4


def test_given_rows_hold_out_the_last_and_train_on_whole_batches(tmp_path):
    x = np.arange((HELD_OUT_ROWS + 64 * 4 + 3) * 2, dtype=np.float32).reshape(-1, 2)
    np.save(tmp_path / "x.npy", x)
    train, held_out = (np.load(path) for path in given_rows(tmp_path / "x.npy", None, tmp_path / "split", 10**9, 4))
    assert np.array_equal(held_out, x[-HELD_OUT_ROWS:])
    assert np.array_equal(train[np.argsort(train[:, 0])], x[: 64 * 4]) and not np.array_equal(train, x[: 64 * 4])
    with pytest.raises(SystemExit, match="holds"):
        given_rows(tmp_path / "x.npy", None, tmp_path / "other", 10**9, 8)


def test_shards_keep_the_upper_half_of_a_float32():
    x = torch.randn(5, 3).bfloat16()
    assert np.array_equal(float32(x.view(torch.uint16).numpy()), x.float().numpy())
    assert float32(np.ones(2, np.float32)).tolist() == [1, 1]
