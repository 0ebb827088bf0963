"""The harvester: claims whole buckets of rows and turns each into a committed shard."""

import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import ray
import torch

from scopemill.harvester.calibration import calibrate
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.harvester.task import HarvestTask
from scopemill.harvester.text.packed_text import load_sequences, pack_corpus
from scopemill.harvester.text.packing import Sequences, permutation, rows_of
from scopemill.proto import metrics
from scopemill.proto.dataset import DatasetManifest, read_manifest
from scopemill.proto.errors import CorpusError, Stopped
from scopemill.proto.memory import keep_freed_memory

IN_FLIGHT = 2  # buckets at once: one is written while the next is computed


class Harvester:
    """Call ``prepare`` once, then ``harvest(bucket)`` from ``IN_FLIGHT`` threads. Every call may be repeated."""

    def __init__(self, task: HarvestTask):
        keep_freed_memory()
        torch.set_num_threads(max(1, int(task.config.cpus)))
        self._task = task
        self._manifest: DatasetManifest | None = None
        self._lm: LanguageModel | None = None
        self._free: SimpleQueue[ShardBuffers] = SimpleQueue()
        self._computing = threading.Lock()
        self._writer = ThreadPoolExecutor(1, initializer=_yield_to_others)
        self._stop = threading.Event()
        self._rows_done = 0

    def prepare(self) -> DatasetManifest:
        """Pack the corpus and fix the scales, unless that is done; returns the manifest."""
        if self._task.bucket.exists(self._task.layout.manifest):
            return read_manifest(self._task.bucket, self._task.dataset)
        shards = pack_corpus(self._task)
        return calibrate(self._task, self._language_model(), shards)

    def harvest(self, shard: int) -> int:
        """Make and commit one shard; returns its number. Returns at once if it is committed."""
        if self._task.bucket.exists(self._task.layout.commit(shard)):
            return shard
        with self._computing:
            self._get_ready()
        buffers = self._free.get()
        try:
            with self._computing, metrics.timed(metrics.HARVEST_SECONDS.labels(self._task.dataset, "forward")):
                dropped = self._fill(buffers, shard)
            with metrics.timed(metrics.HARVEST_SECONDS.labels(self._task.dataset, "write")):
                self._writer.submit(write_shard, self._task.bucket, shard, buffers, dropped).result()
        finally:
            self._free.put(buffers)
        metrics.HARVEST_SHARDS.labels(self._task.dataset).inc()
        metrics.HARVEST_BYTES.labels(self._task.dataset).inc(buffers.nbytes)
        metrics.HARVEST_OUTLIERS.labels(self._task.dataset).inc(dropped)
        return shard

    def rows_done(self) -> int:
        """Rows computed by this process so far, for a progress bar."""
        return self._rows_done

    def stop(self) -> None:
        """Give up the bucket in work at its next forward pass; what is committed is kept."""
        self._stop.set()

    def _get_ready(self) -> None:
        if self._manifest is None:
            self._manifest = read_manifest(self._task.bucket, self._task.dataset)
            for _ in range(IN_FLIGHT):
                self._free.put(ShardBuffers(self._manifest))
            for counter in (metrics.HARVEST_ROWS, metrics.HARVEST_SHARDS, metrics.HARVEST_BYTES, metrics.HARVEST_OUTLIERS):
                counter.labels(self._task.dataset)  # from 0 on, so that no rate misses the first increase
        self._language_model()

    def _language_model(self) -> LanguageModel:
        if self._lm is None:
            self._lm = LanguageModel(self._task.model)
        return self._lm

    def _fill(self, buffers: ShardBuffers, shard: int) -> int:
        """Compute a bucket's rows straight into their permuted places; returns how many outliers were dropped."""
        config, rows = self._task.config, self._manifest.rows_per_shard
        block = load_sequences(self._task.bucket, self._task.text_layout.packed(shard))
        places = permutation(self._manifest.seed, shard, rows)
        done = dropped = 0
        with ThreadPoolExecutor(1) as scatterer:  # while a GPU computes; what it has to do is done when the block is left
            behind: list[Future] = []
            for start in range(0, len(block), config.sequences_per_forward):
                if self._stop.is_set():
                    raise Stopped("the harvester was asked to stop; committed shards are kept")
                part = block[start : start + config.sequences_per_forward]
                kept, outliers, captured = self._kept(part)
                kept = kept[: rows - done]
                destination = np.full(part.tokens.size, rows)
                destination[kept] = places[done : done + len(kept)]
                for name, label in (("token_id", part.tokens), ("document", part.document), ("position", part.position)):
                    buffers.put(destination, name, label.ravel())
                under_way: list[Future] = []

                def scatter(name: str, x: torch.Tensor, to=destination, begun=under_way) -> None:
                    begun.append(scatterer.submit(buffers.put, to, name, buffers.scaled(name, x)))

                if captured:
                    for name, x in captured.items():
                        scatter(name, x)
                else:
                    self._lm.visit(torch.from_numpy(part.tokens), self._task.hooks, scatter)
                [future.result() for future in behind]  # a pass behind at most: they hold memory of the device
                behind = under_way
                done, dropped = done + len(kept), dropped + outliers
                self._rows_done += len(kept)
                metrics.HARVEST_ROWS.labels(self._task.dataset).inc(len(kept))
            [future.result() for future in behind]
        if done < rows:
            raise CorpusError(
                f"bucket {shard} has {rows} rows to fill and only {done} within harvest.outlier_norm ({config.outlier_norm}): "
                f"raise harvest.outlier_spare ({config.outlier_spare}) or the norm"
            )
        return dropped

    def _kept(self, part: Sequences) -> tuple[np.ndarray, int, dict[str, torch.Tensor]]:
        """Which tokens of some sequences are rows; how many are none because they are outliers at some hook; and their activations,
        if those had to be looked at for that."""
        kept = np.flatnonzero(rows_of(part.tokens, self._task.card.special))
        limits = {hook.name: hook.norm_limit for hook in self._manifest.hooks if hook.norm_limit is not None}
        if not limits:
            return kept, 0, {}
        captured = self._lm.capture(torch.from_numpy(part.tokens), self._task.hooks)
        within = np.ones(len(kept), dtype=bool)
        for name, limit in limits.items():
            within &= captured[name].flatten(0, 1).float().norm(dim=1).cpu().numpy()[kept] <= limit
        return kept[within], int((~within).sum()), captured


def _yield_to_others() -> None:
    """Let this thread run where others leave room: one that is pushed off its core holds up all that compute a product with it."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.nice(19)


# Two buckets in work, and room for questions beside them.
HarvesterActor = ray.remote(max_concurrency=IN_FLIGHT + 2, max_restarts=3, max_task_retries=3)(Harvester)
