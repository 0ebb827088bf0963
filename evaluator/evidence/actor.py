"""Make evidence in a Ray actor: count shards into parts, then finish each SAE."""

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import ray
import torch
from ray.actor import ActorClass

from scopemill.evaluator.config import EvidenceConfig
from scopemill.evaluator.evidence.compiling import compile_loops
from scopemill.evaluator.evidence.jobs import EvidenceJob, RowsFrom
from scopemill.evaluator.evidence.logits import readout
from scopemill.evaluator.evidence.making import Counted, bytes_held, count_shard, finish
from scopemill.evaluator.evidence.parts import commit_part, committed_parts
from scopemill.evaluator.evidence.rows import ModelSource, ShardSource, Source
from scopemill.evaluator.evidence.words import vocabulary_of
from scopemill.evaluator.latent_page.write import write_own_page
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.describe import load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.errors import InputError, SaeFormatError, Stopped
from scopemill.proto.hooks import Hook
from scopemill.proto.memory import keep_freed_memory
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import FinishedSae, read_finished

Task = tuple[tuple[EvidenceJob, ...], tuple[int, ...]]  # jobs that share a read, and the shards of one part


class EvidenceMaker:
    """Make the evidence of SAEs from rows of one source. Every method is idempotent."""

    def __init__(self, rows: RowsFrom, model: ModelConfig, card: ModelCard, config: EvidenceConfig):
        keep_freed_memory()
        torch.set_num_threads(max(1, int(config.cpus)))
        self._rows, self._model, self._card, self._config = rows, model, card, config
        self._bucket = Bucket(rows.url)
        self._stop = threading.Event()
        compile_loops()

    @cached_property
    def _lm(self) -> LanguageModel:
        return LanguageModel(self._model)

    @cached_property
    def _source(self) -> Source:
        rows, special = self._rows, self._card.special
        if rows.kind == "model":
            return ModelSource(self._bucket, rows.text, self._lm, rows.context_length, special)
        return ShardSource(self._bucket, rows.dataset, rows.text, special)

    def count(self, task: Task) -> int:
        """Commit the part of some shards for each SAE that lacks it.

        Returns the number of shards.
        Raises Stopped once ``stop`` was called.
        """
        jobs, shards = task
        covered = {job: self._covered(job) for job in jobs}
        left = {job: tuple(s for s in shards if s not in covered[job]) for job in jobs}
        for saes in self._fitting([job for job in jobs if left[job]]):
            self._count(saes, {job: left[job] for job in saes})
        return len(shards)

    def _fitting(self, jobs: Sequence[EvidenceJob]) -> Iterator[dict[EvidenceJob, FinishedSae]]:
        """Yield SAEs in groups that fit into the memory given, at least one at a time."""
        group: dict[EvidenceJob, FinishedSae] = {}
        held, rows = 0, self._rows.rows // max(1, len(self._rows.shards))
        for job in jobs:
            sae = load(job, self._card)
            size = bytes_held(sae, self._config, self._rows.context_length, rows)
            if group and held + size > self._config.memory_gib * 2**30:
                yield group
                group, held = {}, 0
            group[job], held = sae, held + size
        if group:
            yield group

    def _count(self, saes: dict[EvidenceJob, FinishedSae], left: dict[EvidenceJob, tuple[int, ...]]) -> None:
        """Commit the part of a group of SAEs: each shard that any of them lacks is read once."""
        counted: dict[EvidenceJob, Counted] = {}
        numbers = {job: (0, 0) for job in saes}
        for shard in sorted(set().union(*left.values())):
            chosen = [job for job in saes if shard in left[job]]
            if self._stop.is_set():
                raise Stopped("the evidence actor was asked to stop; committed parts are kept")
            of_shard, rows, sequences = count_shard(
                self._source, shard, [self._on_device(saes[job]) for job in chosen], self._config, self._rows.rows
            )
            for job, new in zip(chosen, of_shard, strict=True):
                counted[job] = counted[job].merged(new) if job in counted else new
                numbers[job] = numbers[job][0] + rows, numbers[job][1] + sequences
        for job, of_job in counted.items():
            commit_part(Bucket(job.url), job.layout, left[job], of_job.ledger, of_job.sample, *numbers[job])

    def _covered(self, job: EvidenceJob) -> set[int]:
        if job.made():
            return set(self._rows.shards)
        return {shard for part in committed_parts(Bucket(job.url), job.layout, self._rows.shards) for shard in part.shards}

    def finish(self, job: EvidenceJob) -> str:
        """Write an SAE's evidence from its parts, and return the SAE's folder.

        Its page is written too if the job wants one.
        """
        if not job.made():
            self._finish(job)
        if job.page and not Bucket(job.url).exists(job.layout.page_index):
            write_own_page(job.open())
        return job.folder

    def _finish(self, job: EvidenceJob) -> None:
        bucket = Bucket(job.url)
        done = committed_parts(bucket, job.layout, self._rows.shards)
        sae = self._on_device(load(job, self._card))
        hooks = [Hook.parse(name) for name in sae.outputs or sae.inputs]
        tokenizer = load_tokenizer(self._model)
        out = readout(self._lm, hooks, len(tokenizer))
        words = vocabulary_of(tokenizer, self._card.special, out.untrained)
        cfg = sae.sae.cfg or sae.sae.describe()
        facts: dict[str, Any] = {
            "sae": job.root or job.url, "model": self._card.name, "model_place": self._model.name, "inputs": sae.inputs,
            "outputs": sae.outputs or sae.inputs,
            "architecture": cfg.architecture, "width": sae.sae.width, "source": self._rows.kind, "dataset": self._rows.dataset,
            "dtype": self._rows.dtype, "context_length": self._rows.context_length, "settings": job.settings,
        }  # fmt: skip
        finish(bucket, job.layout, done, sae, self._source, self._config, out, words, facts)

    def stop(self) -> None:
        """Start no further shard. The current one is finished."""
        self._stop.set()

    def _on_device(self, sae: FinishedSae) -> FinishedSae:
        sae.sae.to(self._lm.device if self._rows.kind == "model" else "cuda" if torch.cuda.is_available() else "cpu")
        return sae


def load(job: EvidenceJob, card: ModelCard) -> FinishedSae:
    """Load a job's SAE; raise InputError if it is not of this model."""
    sae = read_finished(job.folder)
    if not sae.inputs:
        raise SaeFormatError(f"{job.folder} does not say which hook it reads: convert it with scopemill convert, and set hook_name")
    check_fits(job.folder, sae, card)
    return sae


def check_fits(folder: str, sae: FinishedSae, card: ModelCard) -> None:
    """Raise InputError if an SAE is of other hooks or widths than a model has."""
    shape = sae.sae.shape
    outputs = sae.outputs or sae.inputs
    for name, d in [*zip(sae.inputs, shape.inputs, strict=True), *zip(outputs, shape.outputs, strict=True)]:
        hook = Hook.parse(name)
        if hook.layer >= card.layers or card.widths.get(hook.site) != d:
            has = f"{card.layers} layers, and {card.widths[hook.site]} columns there" if hook.site in card.widths else "no such site"
            raise InputError(
                f"{folder} is an SAE of {name} with {d} columns, and {card.name} has {has}: name the model that it was trained on"
            )


# One thread to work and one for stop.
EvidenceActor: ActorClass[EvidenceMaker] = ray.remote(max_concurrency=2, max_restarts=3, max_task_retries=3)(EvidenceMaker)  # type: ignore[call-overload]
