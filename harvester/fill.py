"""Fill a shard: run the model over a bucket and scatter the activations."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from scopemill.harvester.finite import check_norms
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.shard import ShardBuffers
from scopemill.harvester.task import HarvestTask
from scopemill.harvester.text.packed_text import load_sequences
from scopemill.harvester.text.packing import Sequences, permutation
from scopemill.proto import metrics
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import CorpusError, Stopped


class ShardFiller:
    """Fill shards of one dataset, one at a time: the caller holds a lock."""

    def __init__(self, task: HarvestTask, manifest: DatasetManifest, lm: LanguageModel, stop: threading.Event):
        self._task, self._manifest, self._lm, self._stop = task, manifest, lm, stop
        self._norm_limits = {hook.name: hook.norm_limit for hook in manifest.hooks if hook.norm_limit is not None}
        self.rows_done = 0  # over all shards

    def fill(self, buffers: ShardBuffers, shard: int) -> int:
        """Compute a bucket's rows straight into their places, and return the number of dropped outliers.

        Raises Stopped once ``stop`` is set, and CorpusError if the outlier filter leaves too few rows; with that
        filter also NotFinite, which `write_shard` raises without it.
        """
        rows = self._manifest.rows_per_shard
        block = load_sequences(self._task.bucket, self._task.text_layout.packed(shard))
        places = permutation(self._manifest.seed, shard, rows)
        done = dropped = 0
        # One thread scatters while a GPU computes. Leaving the block waits for the thread.
        with ThreadPoolExecutor(1) as scatterer:
            previous_pass: list[Future] = []
            for start in range(0, len(block), self._task.config.sequences_per_forward):
                if self._stop.is_set():
                    raise Stopped("the harvester was asked to stop; committed shards are kept")
                part = block[start : start + self._task.config.sequences_per_forward]
                kept, outliers, captured = self._select_rows(shard, part)
                kept = kept[: rows - done]
                destination = np.full(part.tokens.size, rows)  # tokens that are not kept go to the extra row
                destination[kept] = places[done : done + len(kept)]
                this_pass = self._scatter(buffers, part, destination, captured, scatterer)
                _wait(previous_pass)  # tensors that wait to be scattered hold memory of the device: one pass of them at most
                previous_pass = this_pass
                done, dropped = done + len(kept), dropped + outliers
                self._count(len(kept))
            _wait(previous_pass)
        if done < rows:
            raise self._too_few_rows(shard, done)
        return dropped

    def _scatter(
        self,
        buffers: ShardBuffers,
        part: Sequences,
        destination: np.ndarray,
        captured: dict[str, torch.Tensor],
        scatterer: ThreadPoolExecutor,
    ) -> list[Future]:
        """Scatter labels, and start to scatter activations; return the started work.

        Activations come from ``captured``, or from a forward pass if there are none.
        """
        for name, label in (("token_id", part.tokens), ("document", part.document), ("position", part.position)):
            buffers.put(destination, name, label.ravel())
        started: list[Future] = []

        def scatter(name: str, x: torch.Tensor) -> None:
            started.append(scatterer.submit(buffers.put, destination, name, buffers.scaled(name, x)))

        if captured:
            for name, x in captured.items():
                scatter(name, x)
        else:
            self._lm.visit(torch.from_numpy(part.tokens), self._task.hooks, scatter)
        return started

    def _select_rows(self, shard: int, part: Sequences) -> tuple[np.ndarray, int, dict[str, torch.Tensor]]:
        """Return the tokens to keep, the number of dropped outliers, and captured activations.

        Only the outlier filter captures activations.
        """
        kept = np.flatnonzero(part.row_mask(self._task.card.special))
        if not self._norm_limits:
            return kept, 0, {}
        captured = self._lm.capture(torch.from_numpy(part.tokens), self._task.hooks)
        within = np.ones(len(kept), dtype=bool)
        for name, limit in self._norm_limits.items():
            norms = captured[name].flatten(0, 1).float().norm(dim=1).cpu().numpy()[kept]
            check_norms(f"shard {shard}", name, norms, part, kept)  # a NaN would pass for an outlier
            within &= norms <= limit
        return kept[within], int((~within).sum()), captured

    def _count(self, rows: int) -> None:
        self.rows_done += rows
        metrics.HARVEST_ROWS.labels(self._task.dataset).inc(rows)

    def _too_few_rows(self, shard: int, done: int) -> CorpusError:
        config = self._task.config
        return CorpusError(
            f"bucket {shard} has only {done} rows within harvest.outlier_norm ({config.outlier_norm}), and its shard needs "
            f"{self._manifest.rows_per_shard}: raise harvest.outlier_spare ({config.outlier_spare}) or harvest.outlier_norm"
        )


def _wait(futures: list[Future]) -> None:
    """Wait for all futures. Raises the first error among them."""
    for future in futures:
        future.result()
