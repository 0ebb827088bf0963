"""What comes before the first shard: the corpus is packed into buckets, and the scale C of each hook is fixed.

Both results are committed objects, so every harvester works from the same plan and a restart finds it as it was.
"""

from collections.abc import Iterator

import numpy as np
import torch

from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.task import HarvestTask
from scopemill.harvester.text.packed_text import load_sequences
from scopemill.harvester.text.packing import Sequences, rows_of
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector, read_manifest
from scopemill.proto.storage.checksums import checksummed_record

CALIBRATION_SHARDS = 64  # at most: reading every packed bucket of a large corpus would take longer than the model


def calibrate(task: HarvestTask, lm: LanguageModel, shards: int) -> DatasetManifest:
    """Fix C = sqrt(E||x||^2) of each hook over rows from the whole corpus, and commit the manifest.

    With the outlier filter, a first pass takes each hook's median norm, and C is that of the rows which the filter keeps.
    """
    hooks, card, harvest = task.hooks, task.card, task.config
    sample = _calibration_sample(task, shards)
    limits: dict[str, float] = {}
    if harvest.outlier_norm:
        norms = [n for n, _ in _calibration_rows(task, lm, sample)]
        limits = {h.name: float(np.median(np.concatenate([n[h.name] for n in norms]))) * harvest.outlier_norm for h in hooks}
    count = 0
    squares = dict.fromkeys((h.name for h in hooks), 0.0)
    sums: dict[str, np.ndarray] = {h.name: np.zeros(card.widths[h.site]) for h in hooks}
    for norms, rows in _calibration_rows(task, lm, sample):
        keep = np.logical_and.reduce([norms[name] <= limits.get(name, np.inf) for name in norms])
        count += int(keep.sum())
        for name, x in rows.items():
            squares[name] += float((norms[name][keep].astype(np.float64) ** 2).sum())
            sums[name] += x[torch.from_numpy(keep)].double().sum(0).numpy()
    manifest = DatasetManifest(
        dataset=task.dataset,
        identity=task.identity,
        model=card.name,
        context_length=harvest.context_length,
        dtype=harvest.dtype,
        hooks=tuple(
            HookStats(
                name=h.name,
                d=card.widths[h.site],
                scale=(squares[h.name] / count) ** 0.5,
                mean=pack_vector(sums[h.name] / count),
                norm_limit=limits.get(h.name),
            )
            for h in hooks
        ),
        rows_per_shard=harvest.rows_per_shard,
        shards=shards,
        seed=harvest.seed,
        calibration_rows=count,
    )
    task.bucket.create(task.layout.manifest, checksummed_record(manifest.model_dump(mode="json")))
    return read_manifest(task.bucket, task.dataset)


def _calibration_sample(task: HarvestTask, shards: int) -> Sequences:
    """Sequences with about ``calibration_rows`` rows, evenly spaced over the whole corpus."""
    harvest = task.config
    chosen = sorted({round(i) for i in np.linspace(0, shards - 1, min(shards, CALIBRATION_SHARDS))})
    each = -(-harvest.calibration_rows // (len(chosen) * (harvest.context_length - 1)))
    parts = []
    for shard in chosen:
        block = load_sequences(task.bucket, task.text_layout.packed(shard))
        picks = sorted({int(i) for i in np.linspace(0, len(block) - 1, min(each, len(block)))})
        parts += [block[i : i + 1] for i in picks]
    return Sequences.join(parts)


def _calibration_rows(
    task: HarvestTask, lm: LanguageModel, sample: Sequences
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]]:
    """Per forward pass, and per hook: the norms (n,) and the rows (n, d), both float32."""
    for start in range(0, len(sample), task.config.sequences_per_forward):
        tokens = sample.tokens[start : start + task.config.sequences_per_forward]
        keep = torch.from_numpy(rows_of(tokens, task.card.special).ravel())
        captured = lm.capture(torch.from_numpy(tokens), task.hooks)
        rows = {name: x.flatten(0, 1).cpu()[keep].float() for name, x in captured.items()}
        yield {name: x.norm(dim=1).numpy() for name, x in rows.items()}, rows
