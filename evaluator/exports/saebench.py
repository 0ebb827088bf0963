"""Write an SAE's evaluation as SAEBench's result files.

Core and sparse probing. A number that we do not measure is NaN, as SAEBench writes it, and is named in ``eval_result_unstructured``. Ours
come from this SAE's own held-out tokens and tasks: compare them with runs on the same ones.
"""

import json
import math
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from scopemill.evaluator.evidence.reader import Evidence
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.evaluator.probes.scores import RESIDUAL, SAE, ProbeScore
from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import short_name
from scopemill.trainer.formats import FinishedSae

RELEASE_END = "custom_sae"  # SAEBench's id of an SAE that was handed to it
KS = (1, 2, 5, 10, 20, 50, 100)  # of its probes
DECIMALS = 6


def result_files(
    name: str, finished: FinishedSae, evaluation: Evaluation, evidence: Evidence | None, version: str, now: datetime
) -> dict[str, bytes]:
    """Return the files by path: core, and sparse probing if the evaluation has probes."""
    made = {"core": _core(finished, evaluation, evidence)}
    if evaluation.probes:
        made["sparse_probing"] = _sparse_probing(finished, evaluation)
    files = {}
    for kind, fields in made.items():
        about = {
            "eval_type_id": kind,
            "eval_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"scopemill/{kind}/{name}/{finished.fingerprint}")),
            "datetime_epoch_millis": int(now.timestamp() * 1000),
            "sae_bench_commit_hash": f"scopemill {version}",
            "sae_lens_id": RELEASE_END,
            "sae_lens_release_id": name,
            "sae_lens_version": None,
            "sae_cfg_dict": _config(finished),
        }
        files[f"{kind}/{name}_{RELEASE_END}_eval_results.json"] = json.dumps(about | fields, indent=2).encode()
    return files


def release_name(path: str) -> str:
    """Return SAEBench's name of an SAE from its path; InputError for an empty one."""
    name = short_name(path).strip("/").replace("/", "_")
    if not name:
        raise InputError(f"{path!r} names no folder of an SAE")
    return name


def _core(finished: FinishedSae, evaluation: Evaluation, evidence: Evidence | None) -> dict[str, Any]:
    result, densities, details = evaluation.result, [], list[dict[str, Any]]()
    l1 = cosine = math.nan
    if evidence:
        details = list(_details(finished, evidence))
        densities = [latent["feature_density"] for latent in details]
        columns = evidence.latents(["density", "mean"])
        l1 = sum(d * m for d, m in zip(*(columns.column(name).to_pylist() for name in ("density", "mean")), strict=True))
        cosine = _mean([latent["max_decoder_cosine_sim"] for latent in details])
    metrics: dict[str, dict[str, float]] = {
        "model_behavior_preservation": dict.fromkeys(("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"), math.nan),
        "model_performance_preservation": {
            "ce_loss_score": result.recovered_zero, "ce_loss_with_ablation": result.loss_zero_ablated,
            "ce_loss_with_sae": result.loss_spliced, "ce_loss_without_sae": result.loss_clean,
        },
        "reconstruction_quality": {
            "explained_variance": 1 - result.fvu, "explained_variance_legacy": math.nan, "mse": math.nan, "cossim": math.nan,
        },
        "shrinkage": dict.fromkeys(("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"), math.nan),
        "sparsity": {"l0": result.l0, "l1": l1},
        "token_stats": dict.fromkeys(
            ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"), evaluation.evaluated_tokens
        ),
        "misc_metrics": {
            **_frequencies(densities), "average_max_encoder_cosine_sim": math.nan, "average_max_decoder_cosine_sim": cosine,
            "frac_alive": 1 - result.dead_fraction,
        },
    }  # fmt: skip
    lacking = [f"{category}.{name}" for category, values in metrics.items() for name, value in values.items() if math.isnan(value)]
    return {
        "eval_config": {
            "model_name": finished.model or "", "dataset": evidence.record.dataset if evidence else "",
            "context_size": evidence.record.context_length if evidence else 0, "compute_kl": False, "compute_ce_loss": True,
            "compute_l2_norms": False, "compute_sparsity_metrics": True, "compute_variance_metrics": True,
            "compute_featurewise_density_statistics": bool(evidence), "compute_featurewise_weight_based_metrics": bool(evidence),
            "exclude_special_tokens_from_reconstruction": True,
        },
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "eval_result_unstructured": {"not_measured": lacking, "scopemill_settings": evaluation.settings},
    }  # fmt: skip


def _details(finished: FinishedSae, evidence: Evidence) -> Iterator[dict[str, Any]]:
    """Yield each latent's numbers."""
    sae = finished.sae
    norms = None if sae.skip or not hasattr(sae.W_enc, "norm") else sae.W_enc.norm(dim=1).tolist()
    biases = None if sae.b_enc is None else sae.folded_bias().tolist()
    columns = ["latent", "density", "encoder_decoder_cosine", "nearest_cosines"]
    for row in evidence.latents(columns).to_pylist():
        latent, cosines, aligned = row["latent"], row["nearest_cosines"], row["encoder_decoder_cosine"]
        yield {
            "index": latent,
            "feature_density": row["density"],
            "consistent_activation_heuristic": math.nan,
            "encoder_bias": round(biases[latent], DECIMALS) if biases else 0.0,
            "encoder_norm": round(norms[latent], DECIMALS) if norms else math.nan,
            "encoder_decoder_cosine_sim": math.nan if aligned is None else round(aligned, DECIMALS),
            "max_decoder_cosine_sim": round(cosines[0], DECIMALS) if cosines else math.nan,
            "max_encoder_cosine_sim": math.nan,
        }


def _frequencies(densities: Sequence[float]) -> dict[str, float]:
    """Return the shares of latents that fire often, and the shares of firings that are theirs."""
    total, found = sum(densities), {}
    for percent in (1, 10):
        often = [density for density in densities if density > percent / 100]
        found[f"freq_over_{percent}_percent"] = len(often) / len(densities) if densities else math.nan
        found[f"normalized_freq_over_{percent}_percent"] = sum(often) / total if total else math.nan
    return found


def _sparse_probing(finished: FinishedSae, evaluation: Evaluation) -> dict[str, Any]:
    tasks = list(dict.fromkeys(score.task for score in evaluation.probes))
    ks = sorted({score.k for score in evaluation.probes if score.latents_of == SAE} & set(KS))
    by_task = {task: [score for score in evaluation.probes if score.task == task] for task in tasks}
    found = {task: _accuracies(scores, ks) for task, scores in by_task.items()}
    means = {name: _mean([accuracies[name] for accuracies in found.values()]) for name in next(iter(found.values()))}
    return {
        "eval_config": {"dataset_names": tasks, "model_name": finished.model or "", "k_values": ks},
        "eval_result_metrics": {
            owner: {name: value for name, value in means.items() if name.startswith(owner)} for owner in ("llm", "sae")
        },
        "eval_result_details": [{"dataset_name": task} | accuracies for task, accuracies in found.items()],
        "eval_result_unstructured": {"scopemill_settings": evaluation.settings},
    }


def _accuracies(scores: Sequence[ProbeScore], ks: Sequence[int]) -> dict[str, float]:
    """Return one task's accuracies: of the dense probe of the activation, and of the SAE's best k latents."""
    found = {"llm_test_accuracy": _mean([score.accuracy for score in scores if score.latents_of == RESIDUAL])}
    for k in ks:
        found[f"sae_top_{k}_test_accuracy"] = _mean([s.accuracy for s in scores if s.latents_of == SAE and s.k == k])
    return found


def _config(finished: FinishedSae) -> dict[str, Any]:
    """Return the SAE's description under the names that SAEBench's plots use."""
    cfg = finished.sae.cfg or finished.sae.describe(finished.inputs, (), finished.model, finished.metadata)
    return {
        "model_name": cfg.model, "d_in": cfg.d_in, "d_sae": cfg.d_sae, "hook_name": cfg.inputs[0],
        "hook_layer": Hook.parse(cfg.inputs[0]).layer, "context_size": cfg.metadata.get("context_size"),
        "architecture": cfg.architecture, "activation": cfg.activation, "k": cfg.k,
        "dtype": str(finished.sae.dtype).removeprefix("torch."), "prepend_bos": cfg.metadata.get("prepend_bos", True),
        "normalize_activations": cfg.normalization, "apply_b_dec_to_input": finished.sae.centred,
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
