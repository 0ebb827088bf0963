"""Turn buckets of rows into committed shards, in a Ray actor."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import ray
import torch
from ray.actor import ActorClass

from scopemill.harvester.calibration import calibrate
from scopemill.harvester.fill import ShardFiller
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.harvester.task import IN_FLIGHT, HarvestTask
from scopemill.harvester.text.packed_text import pack_corpus
from scopemill.proto import metrics
from scopemill.proto.dataset import DatasetManifest, read_manifest
from scopemill.proto.memory import keep_freed_memory


class Harvester:
    """Make the shards of one dataset. Call ``prepare`` once, then ``harvest`` from ``IN_FLIGHT`` threads.

    Every call is idempotent.
    """

    def __init__(self, task: HarvestTask):
        keep_freed_memory()
        torch.set_num_threads(max(1, int(task.config.cpus)))
        self._task = task
        self._lm: LanguageModel | None = None
        self._filler: ShardFiller | None = None
        self._free: SimpleQueue[ShardBuffers] = SimpleQueue()
        self._notes: list[str] = []
        self._computing = threading.Lock()
        self._writer = ThreadPoolExecutor(1, initializer=_lower_priority)
        self._stop = threading.Event()

    def prepare(self) -> DatasetManifest:
        """Pack the corpus, fix the scales, and return the manifest."""
        if self._task.bucket.exists(self._task.layout.manifest):
            return read_manifest(self._task.bucket, self._task.dataset)
        shards = pack_corpus(self._task)
        manifest, self._notes = calibrate(self._task, self._language_model(), shards)
        return manifest

    def notes(self) -> list[str]:
        """Return what this process's calibration found that users should know."""
        return self._notes

    def harvest(self, shard: int) -> int:
        """Make and commit one shard, unless it is committed, and return its number."""
        dataset = self._task.dataset
        if self._task.bucket.exists(self._task.layout.commit(shard)):
            return shard
        with self._computing:
            filler = self._get_filler()
        buffers = self._free.get()
        try:
            with self._computing, metrics.timed(metrics.HARVEST_SECONDS.labels(dataset, "forward")):
                dropped = filler.fill(buffers, shard)
            with metrics.timed(metrics.HARVEST_SECONDS.labels(dataset, "write")):
                self._writer.submit(write_shard, self._task.bucket, shard, buffers, dropped).result()
        finally:
            self._free.put(buffers)
        metrics.HARVEST_SHARDS.labels(dataset).inc()
        metrics.HARVEST_BYTES.labels(dataset).inc(buffers.nbytes)
        metrics.HARVEST_OUTLIERS.labels(dataset).inc(dropped)
        return shard

    def rows_done(self) -> int:
        """Return the rows that this process has computed so far, for a progress bar."""
        return self._filler.rows_done if self._filler else 0

    def stop(self) -> None:
        """Abandon the current bucket at its next forward pass. Committed shards are kept."""
        self._stop.set()

    def _get_filler(self) -> ShardFiller:
        """Return the filler. The first call loads the model and allocates the buffers."""
        if self._filler is None:
            manifest, lm = read_manifest(self._task.bucket, self._task.dataset), self._language_model()
            for _ in range(IN_FLIGHT):
                self._free.put(ShardBuffers(manifest))
            for counter in (metrics.HARVEST_ROWS, metrics.HARVEST_SHARDS, metrics.HARVEST_BYTES, metrics.HARVEST_OUTLIERS):
                counter.labels(self._task.dataset)  # exposed as 0 from the start, so that no rate misses the first increase
            self._filler = ShardFiller(self._task, manifest, lm, self._stop)
        return self._filler

    def _language_model(self) -> LanguageModel:
        if self._lm is None:
            self._lm = LanguageModel(self._task.model)
        return self._lm


def _lower_priority() -> None:
    """Lower this thread's priority.

    Otherwise this thread pushes a thread of a matrix product off its core, and the other threads wait for that one.
    """
    if sys.platform == "linux":  # elsewhere nice() applies to the whole process
        os.nice(19)


# IN_FLIGHT threads for shards, and two for rows_done and stop.
HarvesterActor: ActorClass[Harvester] = ray.remote(max_concurrency=IN_FLIGHT + 2, max_restarts=3, max_task_retries=3)(Harvester)  # type: ignore[call-overload]
