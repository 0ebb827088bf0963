"""SAEBench's result files from an evaluation; `make test-interop` reads them with its own classes."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from support.exported import subject

from scopemill.evaluator.exports.saebench import release_name, result_files
from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.evaluator.probes.scores import RESIDUAL, SAE, ProbeScore

RESULT = Result(
    hook="blocks.3.hook_resid_post", layer=3, site="resid_post", architecture="jumprelu", width=30, sparsity=0.5, step=10, tokens=1000,
    l0=4.5, fvu=0.2, dead_fraction=0.1, loss_clean=3.0, loss_spliced=3.2, loss_zero_ablated=10.0, loss_mean_ablated=6.0, delta_loss=0.2,
    recovered_zero=6.8 / 7.0, recovered_mean=2.8 / 3.0, path="saes/x",
)  # fmt: skip
PROBES = tuple(
    ProbeScore(task, owner, k, 0.9, accuracy, 100)
    for task, shift in (("a", 0.0), ("b", 0.1))
    for owner, k, accuracy in ((SAE, 1, 0.6 + shift), (SAE, 16, 0.7 + shift), (RESIDUAL, 0, 0.85 + shift))
)
EVALUATION = Evaluation(RESULT, Histogram([-1.0, 0.0], [27], 3), 4096, {"seed": 1}, probes=PROBES)
NOW = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture(scope="module")
def of(tmp_path_factory):
    return subject(tmp_path_factory.mktemp("sae"))


@pytest.fixture(scope="module")
def files(of):
    made = result_files(release_name(of.folder), of.finished, EVALUATION, of.evidence, "0.2", NOW)
    return {path: json.loads(data) for path, data in made.items()}


def test_files_are_named_as_saebench_names_an_sae_that_is_handed_to_it(files):
    assert set(files) == {f"{kind}/tiny_0.5-jumprelu_custom_sae_eval_results.json" for kind in ("core", "sparse_probing")}


def test_core_holds_what_was_measured(of, files):
    core = next(value for path, value in files.items() if path.startswith("core"))
    metrics = core["eval_result_metrics"]
    assert metrics["sparsity"]["l0"] == 4.5 and metrics["reconstruction_quality"]["explained_variance"] == pytest.approx(0.8)
    losses = metrics["model_performance_preservation"]
    zero, clean, spliced = (losses[f"ce_loss_{name}"] for name in ("with_ablation", "without_sae", "with_sae"))
    assert losses["ce_loss_score"] == pytest.approx((zero - spliced) / (zero - clean))
    rows = of.evidence.latents().to_pylist()
    assert metrics["sparsity"]["l1"] == pytest.approx(sum(row["fired"] * row["mean"] for row in rows) / of.evidence.record.rows)
    often = [row["density"] for row in rows if row["density"] > 0.01]
    assert metrics["misc_metrics"]["freq_over_1_percent"] == len(often) / len(rows)
    assert metrics["misc_metrics"]["normalized_freq_over_1_percent"] == pytest.approx(sum(often) / sum(r["density"] for r in rows))
    assert [latent["index"] for latent in core["eval_result_details"]] == list(range(30))
    assert core["eval_result_details"][3]["encoder_norm"] == pytest.approx(of.sae.W_enc[3].norm().item(), rel=1e-4)


def test_what_was_not_measured_is_nan_and_named(files):
    core = next(value for path, value in files.items() if path.startswith("core"))
    for category, values in core["eval_result_metrics"].items():
        for name, value in values.items():
            assert math.isnan(value) == (f"{category}.{name}" in core["eval_result_unstructured"]["not_measured"])
    assert "shrinkage.l2_ratio" in core["eval_result_unstructured"]["not_measured"]


def test_probes_are_means_over_tasks_for_the_ks_that_saebench_has(files):
    probing = next(value for path, value in files.items() if path.startswith("sparse"))
    assert probing["eval_result_metrics"]["sae"] == {"sae_top_1_test_accuracy": pytest.approx(0.65)}  # it has no k of 16
    assert probing["eval_result_metrics"]["llm"] == {"llm_test_accuracy": pytest.approx(0.9)}
    assert [detail["dataset_name"] for detail in probing["eval_result_details"]] == ["a", "b"]


def test_without_evidence_and_probes_the_evaluation_alone_is_written(of):
    made = result_files("x", of.finished, replace(EVALUATION, probes=()), None, "0.2", NOW)
    (path,) = made
    core = json.loads(made[path])
    assert core["eval_result_details"] == [] and math.isnan(core["eval_result_metrics"]["sparsity"]["l1"])


def test_ids_depend_on_the_sae_alone(of, files):
    again = result_files(release_name(of.folder), of.finished, EVALUATION, of.evidence, "0.3", NOW)
    assert all(json.loads(data)["eval_id"] == files[path]["eval_id"] for path, data in again.items())
    assert len({value["eval_id"] for value in files.values()}) == 2
