"""Gather what is known of an SAE and its latents, as people report it.

Whatever was not measured is absent, and the report says so.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from scopemill.deploy.catalog.latents import context_text
from scopemill.evaluator.evidence.reader import Evidence, evidence_of
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.evaluator.probes.scores import ProbeSummary
from scopemill.proto.evidence import TOP
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket

COLUMNS = [
    "latent", "fired", "density", "max", "mean", "top_token", "top_token_share", "token_entropy", "promoted_tokens", "promoted_values",
    "nearest_cosines", "cluster", "encoder_decoder_cosine",
]  # fmt: skip
STEP = 0.5  # of log10 of density, in its histogram
PROMOTED = 5  # tokens named of a latent
TRAINING = (
    "architecture", "activation", "tokens", "batch_size", "learning_rate", "sparsity", "penalty", "normalization", "precision", "seed",
    "initial_sae",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Sort:
    """Describe one order in which latents are listed.

    A large ``key`` comes first; latents of fewer than ``fired`` firings are left out.
    """

    title: str
    key: Callable[[Row], float | None]
    fired: int = 1


SORTS = {
    "density": Sort("Most frequent", lambda row: row["density"]),
    "rare": Sort("Rarest, of those with ten firings or more", lambda row: -row["density"], 10),
    "max": Sort("Largest activation", lambda row: row["max"]),
    "one_token": Sort("Most on one token, of those with a hundred firings or more", lambda row: -row["token_entropy"], 100),
    "promoted": Sort("Largest push on one output token", lambda row: row["promoted_values"][0] if row["promoted_values"] else None),
    "label_score": Sort("Best labels", lambda row: row["label_score"]),
    "output_score": Sort("Largest output score", lambda row: row["output_score"]),
}


def interpretation(folder: str, most: int, contexts: int) -> dict[str, Any]:
    """Return the report of an SAE's folder as one JSON object.

    Of each order of latents the first ``most`` are listed, and their top contexts, so many each. MissingObject if there is no evidence.
    """
    bucket = Bucket(folder)
    evidence = evidence_of(bucket, "")
    rows = _rows(evidence)
    sorts = {name: found for name, sort in SORTS.items() if (found := _first(rows, sort, most))}
    shown = dict.fromkeys(latent for found in sorts.values() for latent in found)
    report = {
        "identity": _identity(bucket, folder, evidence),
        "training": _training(bucket),
        "quality": _quality(bucket),
        "latents": _latents(rows, evidence),
        "labels": _scored(rows, "label_score", [row for row in rows if row["label"] is not None]),
        "output_scores": _output(rows),
        "sorts": sorts,
        "shown": {latent: _shown(evidence, rows[latent], contexts) for latent in shown},
        "evidence": _made(evidence),
    }
    return report | {"caveats": list(_caveats(report))}


def _rows(evidence: Evidence) -> list[Row]:
    labels, scores = evidence.labels(), evidence.output_scores()
    rows: list[Row] = evidence.latents(COLUMNS).to_pylist()
    for row in rows:
        row["label"], row["label_score"] = labels.get(row["latent"], (None, None))
        row["output_score"], row["output_score_random"] = scores.get(row["latent"], (None, None))
    return rows


def _first(rows: Sequence[Row], sort: Sort, most: int) -> list[int]:
    keyed = [(key, row["latent"]) for row in rows if row["fired"] >= sort.fired and (key := sort.key(row)) is not None]
    return [latent for _, latent in sorted(keyed, key=lambda pair: (-pair[0], pair[1]))[:most]]


def _identity(bucket: Bucket, folder: str, evidence: Evidence) -> dict[str, Any]:
    record, known = evidence.record, _json(bucket, SaeLayout("").config)
    return {
        "sae": record.sae or folder, "model": record.model, "reads": list(record.inputs), "writes": list(record.outputs),
        "architecture": record.architecture, "d_in": known.get("d_in"), "latents": record.width,
        "weights_digest": record.settings.get("weights"),
    }  # fmt: skip


def _training(bucket: Bucket) -> dict[str, Any]:
    provenance = _json(bucket, SaeLayout("").provenance)
    settings = provenance.get("sae") or {}
    about = {name: provenance[name] for name in ("sweep", "dataset", "imported_from", "scopemill") if provenance.get(name)}
    return about | {name: settings[name] for name in TRAINING if settings.get(name) is not None}


def _quality(bucket: Bucket) -> dict[str, Any]:
    """Return the numbers of metrics.json, or nothing if the SAE was not evaluated."""
    path = SaeLayout("").metrics.lstrip("/")
    evaluation = Evaluation.find(bucket, path) if bucket.exists(path) else None
    if evaluation is None:
        return {}
    names = (
        "l0", "fvu", "loss_clean", "loss_spliced", "loss_zero_ablated", "loss_mean_ablated", "delta_loss", "recovered_zero",
        "recovered_mean", "dead_fraction", "decoder_cosine",
    )  # fmt: skip
    numbers = {name: value for name, value in asdict(evaluation.result).items() if name in names and math.isfinite(value)}
    probes = ProbeSummary.of(evaluation.probes) if evaluation.probes else None
    return numbers | {"evaluated_tokens": evaluation.evaluated_tokens, "probes": asdict(probes) if probes else None}


def _latents(rows: Sequence[Row], evidence: Evidence) -> dict[str, Any]:
    alive = [row for row in rows if row["fired"]]
    bins = Counter(math.floor(math.log10(row["density"]) / STEP) for row in alive)
    edges = range(min(bins, default=0), max(bins, default=-1) + 1)
    sizes = Counter(row["cluster"] for row in rows)
    aligned = [row["encoder_decoder_cosine"] for row in alive if row["encoder_decoder_cosine"] is not None]
    return {
        "alive": len(alive),
        "dead_share": 1 - len(alive) / len(rows),
        "density_quartiles": _quartiles([row["density"] for row in alive]),
        "density_histogram": [{"from": 10 ** (edge * STEP), "to": 10 ** ((edge + 1) * STEP), "latents": bins[edge]} for edge in edges],
        "frequent": sum(row["density"] > 0.1 for row in alive),
        "mean_encoder_decoder_cosine": _mean(aligned),
        "mean_nearest_cosine": _mean([row["nearest_cosines"][0] for row in alive if row["nearest_cosines"]]),
        "mean_token_entropy": _mean([row["token_entropy"] for row in alive]),
        "clusters": sum(size > 1 for size in sizes.values()),
        "clustered": sum(size for size in sizes.values() if size > 1),
    }


def _scored(rows: Sequence[Row], name: str, chosen: Sequence[Row]) -> dict[str, Any]:
    scores = [row[name] for row in chosen if row[name] is not None]
    return {"latents": len(chosen), "share": len(chosen) / len(rows), "scored": len(scores), "mean_score": _mean(scores)}


def _output(rows: Sequence[Row]) -> dict[str, Any]:
    scored = [row for row in rows if row["output_score"] is not None]
    if not scored:
        return {}
    above = sum(row["output_score"] > row["output_score_random"] for row in scored)
    return _scored(rows, "output_score", scored) | {
        "mean_random": _mean([row["output_score_random"] for row in scored]),
        "above_random": above / len(scored),
    }


def _shown(evidence: Evidence, row: Row, contexts: int) -> dict[str, Any]:
    """Return one latent as the report shows it."""
    words = evidence.vocabulary
    top = islice((example for example in evidence.examples(row["latent"]) if example.interval == TOP), contexts)
    numbers = ("fired", "density", "max", "mean", "token_entropy", "cluster", "label", "label_score", "output_score", "output_score_random")
    return {name: row[name] for name in numbers} | {
        "top_token": None if row["top_token"] is None else words.text(row["top_token"]),
        "top_token_share": row["top_token_share"],
        "promotes": [words.text(id) for id in row["promoted_tokens"][:PROMOTED]],
        "contexts": [
            {"activation": e.value, "document": e.document, "position": e.position, "markdown": context_text(e, words)} for e in top
        ],
    }


def _made(evidence: Evidence) -> dict[str, Any]:
    record = evidence.record
    names = ("source", "dataset", "dtype", "rows", "sequences", "context_length")
    return {name: getattr(record, name) for name in names} | {
        "model_place": record.model_place,
        "folder": evidence.layout.root,
        "settings": record.settings,
    }


def _caveats(report: dict[str, Any]) -> Any:
    made, latents, quality = report["evidence"], report["latents"], report["quality"]
    rows = made["rows"]
    yield f"Latents that fire less often than about once in {rows:,} rows count as dead here; more rows would find some of them alive."
    if made["source"] == "shards":
        yield f"Activations were read as stored, in {made['dtype']}: values near a threshold may fall on its other side."
    yield "Top contexts show a latent at its largest; how it acts at usual activations is seen in the samples of scopemill latent."
    yield "Output tokens follow the direct path through the unembedding alone, without later layers."
    if not quality:
        yield "The SAE has no metrics.json: reconstruction and loss were not measured."
    else:
        yield f"Losses are of {quality['evaluated_tokens']:,} held-out tokens."
    if not report["labels"]["latents"]:
        yield "No latent has a label."
    elif report["labels"]["scored"] < report["labels"]["latents"]:
        yield f"{report['labels']['latents'] - report['labels']['scored']:,} labels have no score: nobody tested them."
    if not report["output_scores"]:
        yield "Output scores were not measured, so nothing is said of what steering with a latent does."
    if latents["frequent"]:
        yield f"{latents['frequent']:,} latents fire on more than a tenth of all rows; such latents seldom have one meaning."


def _json(bucket: Bucket, path: str) -> dict[str, Any]:
    path = path.lstrip("/")
    found = json.loads(bucket.read(path)) if bucket.exists(path) else {}
    return found if isinstance(found, dict) else {}


def _quartiles(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75)] if ordered else []


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
