"""Write what circuit-tracer reads: transcoders and latents of every layer.

Below the folder: ``config.yaml``; ``layer_{l}.safetensors`` of a set of transcoders, or ``W_enc_{l}.safetensors`` and
``W_dec_{l}.safetensors`` of a cross-layer transcoder; ``features/layer_{l}.bin``, and ``features/index.json.gz`` with the place of each
latent in it. A latent is a little-endian uint32, the length of the zlib JSON that follows; its number is the Cantor pair of layer and
index. So a page of it takes one range read. The page asks for one byte beyond a latent, which is why the length stands there.
"""

import gzip
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from scopemill.evaluator.exports.circuit_tracer_weights import weights_of
from scopemill.evaluator.exports.names import Names
from scopemill.evaluator.exports.saedashboard import histogram
from scopemill.evaluator.exports.subject import Latent, Part, Subject, short
from scopemill.proto.errors import InputError
from scopemill.proto.evidence import BINS, INTERVALS, TOP, Example
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import FinishedSae

LEVEL = 6  # of zlib
QUANTILES = 100  # of a latent's activations, so that the page can say where an activation stands


def write_circuit_tracer(
    target: Bucket, saes: Sequence[FinishedSae], subjects: Sequence[Subject], names: Names, see: Callable[[int], None]
) -> list[str]:
    """Write transcoders, and the latents of those that have evidence; return the files.

    InputError if circuit-tracer cannot load the transcoders.
    """
    config, files = weights_of(saes)
    parts = {part.layer: (subject, part) for subject in subjects for part in subject.parts}
    if len(parts) < sum(len(subject.parts) for subject in subjects):
        raise InputError("circuit-tracer takes one transcoder for each layer: two of these SAEs read the same layer")
    written, done = [], 0
    for name, make in files.items():
        target.write(name, make())
        written.append(name)
    index: list[dict[str, Any] | None] = [None] * (max(parts, default=-1) + 1)
    for layer, (subject, part) in sorted(parts.items()):
        name = f"layer_{layer}.bin"

        def told(latents: int, before: int = done) -> None:
            see(before + latents)

        index[layer] = {"filename": name, "offsets": _write_layer(target, f"features/{name}", subject, part, told)}
        done += part.width
        written.append(f"features/{name}")
    if parts:
        target.write("features/index.json.gz", gzip.compress(json.dumps(index, separators=(",", ":")).encode(), 9, mtime=0))
        written.append("features/index.json.gz")
    scan = names.weights or f"{config['model_name']}-transcoders"  # the hub's address, where the page looks for features/
    target.write("config.yaml", yaml.safe_dump(config | {"scan": scan}, sort_keys=False).encode())
    return [*written, "config.yaml"]


def _write_layer(target: Bucket, path: str, subject: Subject, part: Part, see: Callable[[int], None]) -> list[int]:
    """Write the latents of a layer through a local file, and return where each begins, and where the last ends."""
    offsets = [0]
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "features.bin"
        with local.open("wb") as file:
            for latent in subject.latents(part):
                offsets.append(offsets[-1] + file.write(record(subject, part, latent)))
                see(latent.index + 1)
        target.write_file(path, local)
    return offsets


def record(subject: Subject, part: Part, latent: Latent) -> bytes:
    """Return one latent as the bytes of its file."""
    data = zlib.compress(json.dumps(latent_page(subject, part, latent), ensure_ascii=False, allow_nan=False).encode(), LEVEL)
    return len(data).to_bytes(4, "little") + data


def latent_page(subject: Subject, part: Part, latent: Latent) -> dict[str, Any]:
    """Return what circuit-tracer's page shows of a latent."""
    row, words = latent.row, subject.evidence.vocabulary
    return {
        "transcoder_id": f"{subject.evidence.record.model}-{part.layer}",
        "index": cantor_pair(part.layer, latent.index),
        "examples_quantiles": list(_groups(subject, latent)),
        "top_logits": [words.text(id) for id in row["promoted_tokens"]],
        "bottom_logits": [words.text(id) for id in row["suppressed_tokens"]],
        "act_min": 0.0,
        "act_max": row["max"],
        "quantile_values": short(quantiles(row)),
        "histogram": [float(count) for count in histogram(row)[0]],
        "activation_frequency": row["density"],
    }


def cantor_pair(layer: int, index: int) -> int:
    """Return the one number of a layer and an index."""
    return (layer + index) * (layer + index + 1) // 2 + index


def quantiles(row: dict[str, Any]) -> list[float]:
    """Return the hundredths of a latent's activations, each to a bin of the histogram."""
    if not row["fired"]:
        return []
    size, seen, bin = row["histogram_range"] / BINS, 0, -1
    values = []
    for step in range(1, QUANTILES + 1):
        while seen < step * row["fired"] / QUANTILES:
            bin += 1
            seen += row["histogram"][bin]
        values.append(min((bin + 1) * size, row["max"]))
    return values


def _groups(subject: Subject, latent: Latent) -> Iterator[dict[str, Any]]:
    """Yield the contexts by interval, the top ones first."""
    for interval in (TOP, *range(INTERVALS - 1, -1, -1)):
        chosen = [example for example in latent.examples if example.interval == interval]
        if chosen:
            low, high, _ = (0.0, 0.0, 0.0) if interval == TOP else latent.interval(chosen[0])
            title = "Top Activations" if interval == TOP else f"Sampled from {low:.4g} to {high:.4g}"
            yield {"quantile_name": title, "examples": [_example(subject, example) for example in chosen]}


def _example(subject: Subject, example: Example) -> dict[str, Any]:
    return {
        "tokens": subject.evidence.vocabulary.pieces(example.tokens),
        "tokens_acts_list": short(example.activations),
        "train_token_ind": example.peak,
        "is_repeated_datapoint": False,
    }
