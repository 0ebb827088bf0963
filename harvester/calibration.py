"""Fix the scale C of each hook and commit the dataset's manifest.

The manifest is a committed object, so every harvester works from the same one and a restart finds it unchanged.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from scopemill.harvester.finite import check_norms
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.task import HarvestTask
from scopemill.harvester.text.packed_text import load_sequences, packed_checksum
from scopemill.harvester.text.packing import Sequences
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector, read_manifest
from scopemill.proto.errors import CorpusError, ModelError
from scopemill.proto.storage.checksums import checksummed_record

SINK_NORM = 10  # times the median norm: activation sinks have hundreds of times, other tokens hardly ever thrice
SINK_SHARE = 0.05  # of the squared norm of all rows, from which sinks are worth a sentence
CALIBRATION_SHARDS = 64  # at most: reading every packed bucket of a large corpus would take longer than the model

Norms = dict[str, np.ndarray]  # by hook: (n,), float32
Rows = dict[str, torch.Tensor]  # by hook: (n, d), float32


def calibrate(task: HarvestTask, lm: LanguageModel, shards: int) -> tuple[DatasetManifest, list[str]]:
    """Fix C = sqrt(E||x||^2) of each hook and commit the manifest.

    The rows come from the whole corpus. With the outlier filter, a first pass finds each hook's median norm, and C
    counts only the rows that the filter keeps. Also returns sentences on rows that users should know of: those that the
    filter drops, and activation sinks without a filter. Raises NotFinite, naming hook and token, for rows that are not finite;
    ModelError for a hook whose rows are all zero.
    """
    harvest = task.config
    sample = _calibration_sample(task, shards)
    limits = _norm_limits(task, lm, sample) if harvest.outlier_norm else {}
    hooks, count, norms = _hook_stats(task, lm, sample, limits)
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
    # Of harvesters that calibrate at once, the first to commit decides.
    return read_manifest(task.bucket, task.dataset), outlier_notes(norms, harvest.outlier_norm, count)


def _norm_limits(task: HarvestTask, lm: LanguageModel, sample: Sequences) -> dict[str, float]:
    """Return the largest norm that the outlier filter keeps, by hook."""
    assert task.config.outlier_norm is not None
    norms = [norms for norms, _ in _calibration_rows(task, lm, sample)]
    medians = {h.name: float(np.median(np.concatenate([n[h.name] for n in norms]))) for h in task.hooks}
    return {name: median * task.config.outlier_norm for name, median in medians.items()}


def outlier_notes(norms: Norms, outlier_norm: float | None, kept: int) -> list[str]:
    """Write a sentence on rows that the filter drops, or on activation sinks.

    ``norms`` are those of all calibration rows, ``kept`` is the number of rows within the filter.
    """
    rows = len(next(iter(norms.values())))
    if outlier_norm:
        dropped = f"harvest.outlier_norm ({outlier_norm:g}) drops {rows - kept} of {rows} calibration rows"
        return [f"{dropped}: scales and training stand on the others, and evaluation gives figures with and without them"] * (kept < rows)
    sinks = []
    for name, of_hook in norms.items():
        squares, far = of_hook.astype(np.float64) ** 2, of_hook > SINK_NORM * np.median(of_hook)
        if squares[far].sum() > SINK_SHARE * squares.sum():
            sinks.append(f"{name} ({far.sum()} rows, {squares[far].sum() / squares.sum():.0%})")
    about = f"activation sinks: of {rows} calibration rows, norms above {SINK_NORM} times the median hold much of the squared norm"
    remedy = f"harvest.outlier_norm: {SINK_NORM} would leave such tokens out"
    return [f"{about} that fixes a hook's scale: {', '.join(sinks)}. {remedy}"] if sinks else []


def _hook_stats(
    task: HarvestTask, lm: LanguageModel, sample: Sequences, limits: dict[str, float]
) -> tuple[tuple[HookStats, ...], int, Norms]:
    """Return the scale and mean of every hook, the number of rows behind them, and the norms of all rows."""
    seen: list[Norms] = []
    count = 0
    squares = dict.fromkeys((h.name for h in task.hooks), 0.0)
    sums: dict[str, np.ndarray] = {h.name: np.zeros(task.card.widths[h.site]) for h in task.hooks}
    for norms, rows in _calibration_rows(task, lm, sample):
        seen.append(norms)
        keep = np.logical_and.reduce([norms[name] <= limits.get(name, np.inf) for name in norms])
        count += int(keep.sum())
        for name, x in rows.items():
            squares[name] += float((norms[name][keep].astype(np.float64) ** 2).sum())
            sums[name] += x[torch.from_numpy(keep)].double().sum(0).numpy()
    if not count:
        raise CorpusError(f"harvest.outlier_norm ({task.config.outlier_norm}) drops every calibration row: raise it, or leave it out")
    if silent := [name for name, square in squares.items() if not square]:
        raise ModelError(f"{silent[0]}: every activation of the {count} calibration rows is zero: there is nothing to learn, leave it out")
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
    return tuple(stats), count, {h.name: np.concatenate([norms[h.name] for norms in seen]) for h in task.hooks}


def _calibration_sample(task: HarvestTask, shards: int) -> Sequences:
    """Load sequences with about ``calibration_rows`` rows, evenly spaced over the whole corpus."""
    harvest = task.config
    chosen = sorted({round(i) for i in np.linspace(0, shards - 1, min(shards, CALIBRATION_SHARDS))})
    sample = []
    for shard in chosen:
        block = load_sequences(task.bucket, task.text_layout.packed(shard))
        usable, rows = np.arange(len(block)), float(harvest.context_length - 1)
        if not block.wanted.all():  # some sequences may have few rows, or none
            counts = block.row_mask(task.card.special).sum(1)
            usable = np.flatnonzero(counts)
            rows = counts[usable].mean()
        wanted = min(math.ceil(harvest.calibration_rows / (len(chosen) * rows)), len(usable))
        picks = sorted({int(i) for i in np.linspace(0, len(usable) - 1, wanted)})
        sample += [block[usable[i] : usable[i] + 1] for i in picks]
    return Sequences.join(sample)


def _calibration_rows(task: HarvestTask, lm: LanguageModel, sample: Sequences) -> Iterator[tuple[Norms, Rows]]:
    """Yield the rows of each forward pass and their norms."""
    for start in range(0, len(sample), task.config.sequences_per_forward):
        part = sample[start : start + task.config.sequences_per_forward]
        is_row = part.row_mask(task.card.special).ravel()
        captured = lm.capture(torch.from_numpy(part.tokens), task.hooks)
        rows = {name: x.flatten(0, 1).cpu()[torch.from_numpy(is_row)].float() for name, x in captured.items()}
        norms = {name: x.norm(dim=1).numpy() for name, x in rows.items()}
        for name, of_hook in norms.items():
            check_norms("calibration", name, of_hook, part, np.flatnonzero(is_row))
        yield norms, rows
