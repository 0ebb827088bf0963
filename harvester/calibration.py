"""Fix the scale C of each hook and commit the dataset's manifest.

The manifest is a committed object, so every harvester works from the same one and a restart finds it unchanged.
"""

from collections.abc import Iterator

import numpy as np
import torch

from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.task import HarvestTask
from scopemill.harvester.text.packed_text import load_sequences, packed_checksum
from scopemill.harvester.text.packing import Sequences, row_mask
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector, read_manifest
from scopemill.proto.storage.checksums import checksummed_record

CALIBRATION_SHARDS = 64  # at most: reading every packed bucket of a large corpus would take longer than the model

Norms = dict[str, np.ndarray]  # by hook: (n,), float32
Rows = dict[str, torch.Tensor]  # by hook: (n, d), float32


def calibrate(task: HarvestTask, lm: LanguageModel, shards: int) -> DatasetManifest:
    """Fix C = sqrt(E||x||^2) of each hook and commit the manifest.

    The rows come from the whole corpus. With the outlier filter, a first pass finds each hook's median norm, and C
    counts only the rows that the filter keeps.
    """
    harvest = task.config
    sample = _calibration_sample(task, shards)
    limits = _norm_limits(task, lm, sample) if harvest.outlier_norm else {}
    hooks, count = _hook_stats(task, lm, sample, limits)
    manifest = DatasetManifest(
        dataset=task.dataset,
        identity=task.identity,
        model=task.card.name,
        context_length=harvest.context_length,
        dtype=harvest.dtype,
        hooks=hooks,
        rows_per_shard=harvest.rows_per_shard,
        shards=shards,
        seed=harvest.seed,
        calibration_rows=count,
        text=packed_checksum(task),
    )
    task.bucket.create(task.layout.manifest, checksummed_record(manifest.model_dump(mode="json")))
    return read_manifest(task.bucket, task.dataset)  # of harvesters that calibrate at once, the first to commit decides


def _norm_limits(task: HarvestTask, lm: LanguageModel, sample: Sequences) -> dict[str, float]:
    """Return the largest norm that the outlier filter keeps, by hook."""
    assert task.config.outlier_norm is not None
    norms = [norms for norms, _ in _calibration_rows(task, lm, sample)]
    medians = {h.name: float(np.median(np.concatenate([n[h.name] for n in norms]))) for h in task.hooks}
    return {name: median * task.config.outlier_norm for name, median in medians.items()}


def _hook_stats(task: HarvestTask, lm: LanguageModel, sample: Sequences, limits: dict[str, float]) -> tuple[tuple[HookStats, ...], int]:
    """Return the scale and mean of every hook, and the number of rows behind them."""
    count = 0
    squares = dict.fromkeys((h.name for h in task.hooks), 0.0)
    sums: dict[str, np.ndarray] = {h.name: np.zeros(task.card.widths[h.site]) for h in task.hooks}
    for norms, rows in _calibration_rows(task, lm, sample):
        keep = np.logical_and.reduce([norms[name] <= limits.get(name, np.inf) for name in norms])
        count += int(keep.sum())
        for name, x in rows.items():
            squares[name] += float((norms[name][keep].astype(np.float64) ** 2).sum())
            sums[name] += x[torch.from_numpy(keep)].double().sum(0).numpy()
    stats = (
        HookStats(
            name=h.name,
            d=task.card.widths[h.site],
            scale=(squares[h.name] / count) ** 0.5,
            mean=pack_vector(sums[h.name] / count),
            norm_limit=limits.get(h.name),
        )
        for h in task.hooks
    )
    return tuple(stats), count


def _calibration_sample(task: HarvestTask, shards: int) -> Sequences:
    """Load sequences with about ``calibration_rows`` rows, evenly spaced over the whole corpus."""
    harvest = task.config
    chosen = sorted({round(i) for i in np.linspace(0, shards - 1, min(shards, CALIBRATION_SHARDS))})
    per_shard = -(-harvest.calibration_rows // (len(chosen) * (harvest.context_length - 1)))
    sample = []
    for shard in chosen:
        block = load_sequences(task.bucket, task.text_layout.packed(shard))
        picks = sorted({int(i) for i in np.linspace(0, len(block) - 1, min(per_shard, len(block)))})
        sample += [block[i : i + 1] for i in picks]
    return Sequences.join(sample)


def _calibration_rows(task: HarvestTask, lm: LanguageModel, sample: Sequences) -> Iterator[tuple[Norms, Rows]]:
    """Yield the rows of each forward pass and their norms."""
    for start in range(0, len(sample), task.config.sequences_per_forward):
        tokens = sample.tokens[start : start + task.config.sequences_per_forward]
        is_row = torch.from_numpy(row_mask(tokens, task.card.special).ravel())
        captured = lm.capture(torch.from_numpy(tokens), task.hooks)
        rows = {name: x.flatten(0, 1).cpu()[is_row].float() for name, x in captured.items()}
        yield {name: x.norm(dim=1).numpy() for name, x in rows.items()}, rows
