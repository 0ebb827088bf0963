"""Fine-tune finished SAEs and measure each before and after, in a Ray actor."""

import importlib.metadata
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import ray
import torch
from ray.actor import ActorClass

from scopemill.evaluator.fidelity.actor import result_of
from scopemill.evaluator.fidelity.finetuned import Finetuned, FinetuneJob
from scopemill.evaluator.fidelity.measure import Baseline, EvaluationText, Fidelity, measure, measure_baseline
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.text.packing import Sequences
from scopemill.proto import metrics
from scopemill.proto.errors import InputError, Stopped
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import SaeLayout
from scopemill.proto.memory import keep_freed_memory
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.config.finetuning import KlConfig
from scopemill.trainer.finetune import checkpoint
from scopemill.trainer.finetune.loop import FinetuneLoop, Ports, StepReport, measure_units
from scopemill.trainer.finetune.text import Text, batches
from scopemill.trainer.formats import read_finished, write_saelens
from scopemill.trainer.formats.finished import FinishedSae

LOG_EVERY = 10  # steps between the rows of a history
UNIT_SEQUENCES = 64  # sequences that fix the unit of each hook


def held_out_text(load: Callable[[], Sequences], card: ModelCard, sequences_per_forward: int) -> EvaluationText:
    """Return sequences as the text of an evaluation."""
    return EvaluationText(*_tensors(load(), card), sequences_per_forward)


class Finetuner:
    """Fine-tune SAEs one after another, with one language model.

    ``held_out`` returns the text that each SAE is measured on before and after.
    """

    def __init__(
        self, model: ModelConfig, card: ModelCard, config: KlConfig, text: Text, held_out: Callable[[], EvaluationText], steps: int
    ):
        keep_freed_memory()
        torch.set_num_threads(max(1, int(config.cpus)))
        self._card, self._config, self._text, self._steps = card, config, text, steps
        self._lm = LanguageModel(model)
        self._held_out = held_out()
        self._baselines: dict[tuple[Hook, ...], Baseline] = {}
        self._before: dict[str, Fidelity] = {}  # by the source's folder: both arms start from it
        self._steps_done = 0
        self._stop = threading.Event()

    def finetune(self, job: FinetuneJob) -> Finetuned:
        """Fine-tune an SAE in one arm, measure it, commit it, and return the record. Idempotent.

        Raises Stopped once ``stop`` was called, after a checkpoint.
        """
        bucket, layout = Bucket(job.bucket_url), SaeLayout(job.root)
        if bucket.exists(layout.config):
            return Finetuned.read(bucket, layout)
        finished = read_finished(job.source)
        loop = self._loop(finished, job)
        history = self._train(loop, bucket, layout, job.name)
        tuned = replace(finished, sae=loop.raw_sae().to("cpu"), metadata=finished.metadata | self._provenance(job))
        if job.source not in self._before:
            self._before[job.source] = self._measure(finished, job.source)[1]
        base, after = self._measure(tuned, job.root)
        rows = [asdict(row) for row in history]
        before = _figures(self._before[job.source])
        record = Finetuned(job.arm, job.source, self._steps, self._tokens, base.loss_clean, before, _figures(after), rows)
        self._write(bucket, layout, tuned, record, self._evaluation(job, layout, tuned, base, after))
        return record

    def steps_done(self) -> int:
        """Return the number of steps that this actor has done or found done."""
        return self._steps_done

    def stop(self) -> None:
        """End after the current step, with a checkpoint."""
        self._stop.set()

    def _loop(self, finished: FinishedSae, job: FinetuneJob) -> FinetuneLoop:
        inputs, outputs = finished.hooks(job.source)
        sparsity = self._config.sparsity if self._config.sparsity is not None else job.sparsity
        if finished.sae.activation.name == "relu" and sparsity is None:
            raise InputError(
                f"{job.source} is a ReLU SAE: without its L1 penalty it would become dense; give the coefficient that it was trained with "
                "as sparsity (0 for none)"
            )
        some = Sequences.join(list(islice(self._text.sequences(0), UNIT_SEQUENCES)))
        units = measure_units(self._lm, (*inputs, *outputs), *_tensors(some, self._card))
        ports = Ports(inputs, outputs, tuple(units[h] for h in inputs), tuple(units[h] for h in outputs))
        return FinetuneLoop(self._lm, finished.sae, ports, self._config, job.arm, self._steps, sparsity or 0.0)

    def _train(self, loop: FinetuneLoop, bucket: Bucket, layout: SaeLayout, name: str) -> list[StepReport]:
        history = checkpoint.resume(bucket, layout, loop)
        self._steps_done += loop.step_number
        for block in batches(self._text, self._config.sequences_per_step, loop.step_number, self._steps):
            report = loop.step(*_tensors(block, self._card))
            self._steps_done += 1
            if report.step % LOG_EVERY == 0 or loop.finished:
                history.append(report)
            for gauge, value in (
                (metrics.FINETUNE_STEP, loop.step_number),
                (metrics.FINETUNE_MSE, report.mse),
                (metrics.FINETUNE_KL, report.kl),
            ):
                gauge.labels(name).set(value)
            if loop.step_number % self._config.checkpoint_every == 0 or loop.finished or self._stop.is_set():
                checkpoint.save(bucket, layout, loop, history)
            if self._stop.is_set() and not loop.finished:
                raise Stopped("the fine-tuning was asked to stop; its checkpoint is kept")
        return history

    def _measure(self, finished: FinishedSae, place: str) -> tuple[Baseline, Fidelity]:
        """Measure a finished SAE on the held-out text; the baseline of its outputs is measured once."""
        inputs, outputs = finished.hooks(place)
        splice_special = self._config.splice_special
        if outputs not in self._baselines:
            self._baselines[outputs] = measure_baseline(self._lm, outputs, self._held_out, splice_special)
        baseline, sae = self._baselines[outputs], finished.sae.to(self._lm.device)
        fidelity = measure(self._lm, sae, inputs, outputs, self._held_out, baseline, splice_special)
        sae.to("cpu")
        return baseline, fidelity

    def _provenance(self, job: FinetuneJob) -> dict[str, Any]:
        return {
            "finetuned": {"arm": job.arm, "from": job.source, "text": self._text.identity, "settings": self._config.model_dump(mode="json")}
        }

    @property
    def _tokens(self) -> int:
        return self._steps * self._config.sequences_per_step * self._held_out.tokens.shape[1]

    def _evaluation(self, job: FinetuneJob, layout: SaeLayout, tuned: FinishedSae, base: Baseline, after: Fidelity) -> Evaluation:
        inputs, outputs = tuned.hooks(job.root)
        targets = () if tuned.sae.shape.autoencoder else outputs
        result = result_of(
            inputs, targets, base, after, architecture=tuned.sae.architecture, width=tuned.sae.width, sparsity=job.sparsity or 0.0,
            step=self._steps, tokens=self._tokens, path=layout.root,
        )  # fmt: skip
        settings = {"finetuning": job.arm, "sequences": len(self._held_out.tokens), "splice_special": self._config.splice_special}
        return Evaluation(result, after.histogram, base.rows, settings)

    def _write(self, bucket: Bucket, layout: SaeLayout, tuned: FinishedSae, record: Finetuned, evaluation: Evaluation) -> None:
        bucket.write(layout.finetuned, checksummed_record(asdict(record)))
        bucket.write(layout.metrics, evaluation.to_record())
        provenance = {"scopemill": importlib.metadata.version("scopemill"), "finetuned": tuned.metadata["finetuned"]}
        write_saelens(bucket, layout, tuned, provenance)  # cfg.json last: it makes the folder a finished SAE
        bucket.remove_tree(layout.checkpoints)


def _tensors(block: Sequences, card: ModelCard) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of sequences and the mask of their rows."""
    return torch.from_numpy(block.tokens), torch.from_numpy(block.row_mask(card.special))


def _figures(fidelity: Fidelity) -> dict[str, float]:
    """Return the measurements of an SAE that are compared before and after."""
    return {name: getattr(fidelity, name) for name in ("loss_spliced", "fvu", "l0", "dead_fraction")}


# One thread to fine-tune; one for progress, and one for stop.
FinetunerActor: ActorClass[Finetuner] = ray.remote(max_concurrency=3, max_restarts=3, max_task_retries=3)(Finetuner)  # type: ignore[call-overload]
