"""Write evidence as SAEDashboard's files: ``batch-N.json``, a fixed number of latents each.

Fields keep the names of sae_dashboard 0.8 (`NeuronpediaDashboardFeature`). What evidence does not hold is empty: correlated neurons, a
histogram of all logits, weights by attention head.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from scopemill.evaluator.exports.names import Names
from scopemill.evaluator.exports.subject import Latent, Part, Subject, blocks, short
from scopemill.proto.evidence import BINS, TOP, Example
from scopemill.proto.storage.bucket import Bucket

BATCH = 128  # latents in a file, as sae_dashboard writes them
ALIGNED = 3  # entries of a decoder row that are named


def write_saedashboard(target: Bucket, subject: Subject, names: Names, see: Callable[[int], None]) -> list[str]:
    """Write the batches of an SAE, below a folder for each source.

    ``see`` is told the number of latents done. Returns the folders.
    """
    folders = []
    for part in subject.parts:
        folder = f"{names.model_id(subject)}/{names.source_id(subject, part)}"
        about = {
            "model_id": names.model_id(subject), "layer": part.layer, "sae_set": names.set_name(subject),
            "sae_id_suffix": names.suffix_of(subject) or None,
        }  # fmt: skip
        for number, block in enumerate(blocks(subject.latents(part), BATCH)):
            batch = about | {"features": list(features(subject, part, block))}
            target.write(f"{folder}/batch-{number}.json", json.dumps(batch, ensure_ascii=False, allow_nan=False).encode(), durable=False)
            see(part.first + block[-1].index + 1)
        folders.append(folder)
    return folders


def features(subject: Subject, part: Part, latents: Iterable[Latent]) -> Iterator[dict[str, Any]]:
    """Yield the dashboards of some latents of a part, as sae_dashboard's fields."""
    record = subject.evidence.record
    for latent in latents:
        yield {
            "feature_index": latent.index,
            **statistics(subject, part, latent),
            "n_prompts_total": record.sequences,
            "n_tokens_in_prompt": record.context_length,
            "dataset": record.dataset,
            "activations": [activation(subject, latent, example) for example in latent.examples],
            "vector": [],
        }


def statistics(subject: Subject, part: Part, latent: Latent) -> dict[str, Any]:
    """Return what a dashboard says of a latent beside its contexts."""
    row, words = latent.row, subject.evidence.vocabulary
    heights, values = histogram(row)
    return {
        **_alignment(subject, part, latent),
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        **_correlated(subject, part, latent),
        "neg_str": [words.text(id) for id in row["suppressed_tokens"]],
        "neg_values": short(row["suppressed_values"]),
        "pos_str": [words.text(id) for id in row["promoted_tokens"]],
        "pos_values": short(row["promoted_values"]),
        "frac_nonzero": row["density"],
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": values,
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "decoder_weights_dist": [],
    }


def histogram(row: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Return counts of activations and the middle of each bin, up to the maximum."""
    counts = row["histogram"]
    last = max((bin for bin, count in enumerate(counts) if count), default=-1) + 1
    size = row["histogram_range"] / BINS
    return counts[:last], short([(bin + 0.5) * size for bin in range(last)])


def activation(subject: Subject, latent: Latent, example: Example) -> dict[str, Any]:
    """Return one context with the bounds of its interval.

    Those of a top context are -1 and the maximum.
    """
    low, high, share = (-1.0, latent.row["max"], -1.0) if example.interval == TOP else latent.interval(example)
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "tokens": subject.evidence.vocabulary.pieces(example.tokens),
        "values": short(example.activations),
        "qualifying_token_index": example.peak,
    }


def _alignment(subject: Subject, part: Part, latent: Latent) -> dict[str, Any]:
    """Return the largest entries of a decoder row of one hook, and their shares of its L1 norm."""
    indices: list[int] = []
    values, shares = torch.empty(0), torch.empty(0)
    if subject.single:
        direction = subject.directions([part.first + latent.index])[0]
        values, at = direction.topk(min(ALIGNED, len(direction)))
        indices, shares = at.tolist(), values.abs() / direction.abs().sum().clamp(min=1e-30)
    return {
        "neuron_alignment_indices": indices,
        "neuron_alignment_values": short(values.tolist()),
        "neuron_alignment_l1": short(shares.tolist()),
    }


def _correlated(subject: Subject, part: Part, latent: Latent) -> dict[str, Any]:
    """Return the latents of the part that fire together with this one, by phi, and the cosines of their decoder rows.

    phi is Pearson's correlation of whether they fire. The field ``_l1`` holds cosines in sae_dashboard as well.
    """
    pairs = zip(latent.row["cofiring_latents"], latent.row["cofiring_phi"], strict=True)
    inside = [(other, phi) for other, phi in pairs if part.first <= other < part.stop]
    cosines = torch.empty(0)
    if inside:
        own, *others = subject.directions([part.first + latent.index, *(other for other, _ in inside)])
        cosines = torch.nn.functional.cosine_similarity(torch.stack(others), own[None])
    return {
        "correlated_features_indices": [other - part.first for other, _ in inside],
        "correlated_features_l1": short(cosines.tolist()),
        "correlated_features_pearson": short([phi for _, phi in inside]),
    }
