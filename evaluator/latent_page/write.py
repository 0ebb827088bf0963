"""Write a folder that shows latents in any browser.

It opens from disk or a file server, without a build or a network. Browsers load no data files from disk, but scripts. So every data file
is a script with one call: a table for each SAE, and a file for each `CHUNK_LATENTS` latents, which is loaded when one of its latents is
looked at.
"""

import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from scopemill.evaluator.evidence.reader import Evidence
from scopemill.evaluator.latent_page.cluster_map import cluster_map
from scopemill.evaluator.matching.twins import Twins, twins_of
from scopemill.proto.evidence import INTERVALS, TOP, Example
from scopemill.proto.layout import short_name
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.vocabulary import Vocabulary

STATIC = ("index.html", "page.css", "latent.css", "latent.js", "map.js", "page.js")
CHUNK_LATENTS = 64
DIGITS = 4  # of a number on the page
TOP_CONTEXTS, SAMPLES = 12, 2  # of a latent, and of each interval
BEFORE, AFTER = 28, 11  # tokens of a context around its peak


def write_page(target: Bucket, saes: Sequence[tuple[str, Evidence]]) -> None:
    """Write the page of some SAEs, each with its name; ``index.html`` is written last."""
    for number, (_, evidence) in enumerate(saes):
        folder, labels, rows = f"data/{number}", evidence.labels(), evidence.latents().to_pylist()
        target.write(f"{folder}/table.js", _call("table", number, _table(evidence, labels)))
        target.write(f"{folder}/map.js", _call("map", number, _map(rows, evidence.vocabulary)))
        twins = [(_number_of(one, saes), one) for one in twins_of(evidence)]
        for index, chunk in _chunks(evidence, rows, twins):
            target.write(f"{folder}/latents-{index:05d}.js", _call("latents", number, index, chunk))
    listed = [_sae(name, evidence) for name, evidence in saes]
    target.write("data/saes.js", _call("saes", {"chunk": CHUNK_LATENTS, "intervals": INTERVALS, "saes": listed}))
    for name in reversed(STATIC):
        target.write(name, (files(__package__) / "static" / name).read_bytes())


def write_own_page(evidence: Evidence) -> str:
    """Write an SAE's page beside its evidence, and return the place of its index."""
    target = Bucket(f"{evidence.bucket.url}/{evidence.layout.page}")
    write_page(target, [(short_name(evidence.record.sae), evidence)])
    return target.place("index.html")


def _number_of(twins: Twins, saes: Sequence[tuple[str, Evidence]]) -> int | None:
    """Return the page's number of the other SAE of twins, or None if it is not on the page."""
    weights = [evidence.record.settings.get("weights") for _, evidence in saes]
    return weights.index(twins.record.other_weights) if twins.record.other_weights in weights else None


def _call(function: str, *arguments: Any) -> bytes:
    """Return a script that hands data to the page."""
    listed = ",".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in arguments)
    return f"scopemill.{function}({listed});\n".encode()


def _sae(name: str, evidence: Evidence) -> dict[str, Any]:
    record = evidence.record
    source = f"shards of {record.dataset}" if record.source == "shards" else f"{record.dataset}, through the live model"
    return {
        "name": name, "model": record.model, "hooks": " → ".join(dict.fromkeys((" + ".join(record.inputs), " + ".join(record.outputs)))),
        "architecture": record.architecture, "width": record.width, "alive": record.alive, "rows": record.rows, "source": source,
    }  # fmt: skip


def _table(evidence: Evidence, labels: dict[int, tuple[str, float | None]]) -> dict[str, Any]:
    """Return the columns of the list of latents, row n of latent n."""
    words, scores = evidence.vocabulary, evidence.output_scores()
    columns = evidence.latents(["density", "max", "cluster", "top_token", "promoted_tokens"])
    top, promoted = columns.column("top_token").to_pylist(), columns.column("promoted_tokens").to_pylist()
    return {
        "density": [_short(value) for value in columns.column("density").to_pylist()],
        "max": [_short(value) for value in columns.column("max").to_pylist()],
        "cluster": columns.column("cluster").to_pylist(),
        "top": ["" if id is None else words.text(id) for id in top],
        "promotes": [words.text(ids[0]) if ids else "" for ids in promoted],
        "output": {latent: _short(score) for latent, (score, _) in scores.items()},
        "random": {latent: _short(control) for latent, (_, control) in scores.items()},
        "labels": {latent: label for latent, (label, _) in labels.items()},
        "scores": {latent: score for latent, (_, score) in labels.items() if score is not None},
    }


def _map(rows: Sequence[dict[str, Any]], words: Vocabulary) -> list[dict[str, Any]]:
    """Return the clusters of the map, with words for tokens."""
    return [
        {
            "cluster": one.cluster,
            "latents": one.latents,
            "x": _short(one.x),
            "y": _short(one.y),
            "words": [words.text(id) for id in one.tokens],
        }
        for one in cluster_map(rows)
    ]


def _chunks(
    evidence: Evidence, rows: Sequence[dict[str, Any]], twins: Sequence[tuple[int | None, Twins]]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield the latents of each data file, with its number."""
    words = evidence.vocabulary
    of_others = [(number, one.title, one.table.to_pylist()) for number, one in twins]
    chunk: list[dict[str, Any]] = []
    for latent, examples in evidence.all_examples():
        others = [_twins(number, title, table[latent]) for number, title, table in of_others]
        chunk.append(_latent(rows[latent], examples, words) | ({"twins": others} if others else {}))
        if len(chunk) == CHUNK_LATENTS or latent == len(rows) - 1:
            yield latent // CHUNK_LATENTS, chunk
            chunk = []


def _latent(row: dict[str, Any], examples: Sequence[Example], words: Vocabulary) -> dict[str, Any]:
    tokens = {
        name: [[words.text(id), _short(value)] for id, value in zip(row[f"{name}_tokens"], row[f"{name}_values"], strict=True)]
        for name in ("promoted", "suppressed")
    }
    facts = ("fired", "density", "max", "mean", "std", "top_token_share", "token_entropy", "encoder_decoder_cosine", "decoder_norm")
    return tokens | {
        **{name: _short(row[name]) for name in facts},
        "cluster": row["cluster"],
        "range": row["histogram_range"],
        "histogram": row["histogram"],
        "nearest": [[other, _short(score)] for other, score in zip(row["nearest_latents"], row["nearest_cosines"], strict=True)],
        "cofiring": [[other, _short(score)] for other, score in zip(row["cofiring_latents"], row["cofiring_phi"], strict=True)],
        "contexts": [_context(example, words) for example in _chosen(examples)],
    }


def _twins(number: int | None, title: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a latent's twins in another SAE; ``number`` is the other's on the page, if it is there."""
    scored = {
        name: [[other, _short(score)] for other, score in zip(row[latents], row[scores], strict=True)]
        for name, latents, scores in (
            ("cosine", "nearest_latents", "nearest_cosines"),
            ("phi", "cofiring_latents", "cofiring_phi"),
            ("children", "children", "children_scores"),
        )
    }
    return {"sae": number, "title": title} | {name: pairs for name, pairs in scored.items() if pairs}


def _chosen(examples: Sequence[Example]) -> Iterator[Example]:
    """Yield the contexts that the page shows: the top ones, and the first samples of each interval."""
    taken: dict[int, int] = {}
    for example in examples:
        taken[example.interval] = taken.get(example.interval, 0) + 1
        if taken[example.interval] <= (TOP_CONTEXTS if example.interval == TOP else SAMPLES):
            yield example


def _context(example: Example, words: Vocabulary) -> list[Any]:
    """Return [interval, value, document, position, peak, pieces, activations] of a context, cut around its peak."""
    pieces = words.pieces(example.tokens)
    start, stop = max(0, example.peak - BEFORE), example.peak + AFTER + 1
    activations = [_short(value) for value in example.activations[start:stop]]
    place = [example.document, example.position, example.peak - start]
    return [example.interval, _short(example.value), *place, pieces[start:stop], activations]


def _short(value: float | None) -> float | int | None:
    """Return a number with few digits, so that files stay small."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) and value else value or (None if value is None else 0)
