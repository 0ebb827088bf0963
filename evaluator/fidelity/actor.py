"""Measure checkpoints and commit each result, in a Ray actor."""

import threading

import ray
import torch
from ray.actor import ActorClass

from scopemill.evaluator.config import EvaluationConfig
from scopemill.evaluator.fidelity.jobs import Job, committed, settings_of
from scopemill.evaluator.fidelity.measure import Baseline, EvaluationText, Fidelity, measure, measure_baseline
from scopemill.evaluator.fidelity.results import Evaluation, Result
from scopemill.evaluator.probes.actor import Prober
from scopemill.harvester.config import CorpusConfig, ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.text.packed_text import load_sequences, tokenized_documents
from scopemill.harvester.text.packing import Sequences, pack_sequences, row_mask
from scopemill.proto import metrics
from scopemill.proto.errors import CorpusError, Stopped
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout, SaeLayout
from scopemill.proto.memory import keep_freed_memory
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Wiring, label
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.training import checkpoint


def load_text(
    bucket: Bucket, dataset: str, model: ModelConfig, card: ModelCard, config: EvaluationConfig, context_length: int
) -> EvaluationText:
    """Load the text to evaluate on: the evaluation's own corpus, or the harvest's reserved sequences."""
    if config.corpus is None:
        block = load_sequences(bucket, DatasetLayout(dataset).reserved)
    else:
        block = _pack(model, card, config.corpus, config.sequences, context_length)
    is_row = torch.from_numpy(row_mask(block.tokens, card.special))
    return EvaluationText(torch.from_numpy(block.tokens), is_row, config.sequences_per_forward)


def _pack(model: ModelConfig, card: ModelCard, corpus: CorpusConfig, wanted: int, context_length: int) -> Sequences:
    packed: list[Sequences] = []
    for sequence in pack_sequences(tokenized_documents(model, corpus), context_length, card.bos):
        packed.append(sequence)
        if len(packed) == wanted:
            return Sequences.join(packed)
    raise CorpusError(
        f"evaluation corpus {corpus.source!r} has {len(packed)} sequences of {context_length} tokens, not {wanted}: "
        "lower evaluation.sequences or add text to the corpus"
    )


class Evaluator:
    """Measure checkpoints of a sweep on one text.

    The baseline of each hook is measured once and kept.
    """

    def __init__(self, bucket_url: str, dataset: str, model: ModelConfig, card: ModelCard, config: EvaluationConfig, context_length: int):
        keep_freed_memory()
        torch.set_num_threads(max(1, int(config.cpus)))
        self._bucket, self._config = Bucket(bucket_url), config
        self._settings = settings_of(config, dataset, context_length)
        self._lm = LanguageModel(model)
        self._text = load_text(self._bucket, dataset, model, card, config, context_length)
        self._baselines: dict[tuple[Hook, ...], Baseline] = {}
        self._prober = Prober(self._lm, model, card, config, context_length) if config.probes else None
        self._stop = threading.Event()

    def evaluate(self, job: Job) -> str:
        """Measure a checkpoint, commit the result, and return the SAE's name. Idempotent.

        Raises Stopped once ``stop`` was called.
        """
        if self._stop.is_set():
            raise Stopped("the evaluator was asked to stop; committed evaluations are kept")
        if committed(self._bucket, job, self._settings):
            return job.sae
        layout = SaeLayout(job.root)
        trained, record = checkpoint.load_sae(self._bucket, layout, job.step)
        config, wiring = record.sae_config, Wiring.from_json(record.wiring)
        inputs, outputs = (tuple(Hook.parse(port.hook) for port in ports) for ports in (wiring.inputs, wiring.outputs))
        if outputs not in self._baselines:
            self._baselines[outputs] = measure_baseline(self._lm, outputs, self._text, self._config.splice_special)
        baseline = self._baselines[outputs]
        sae = fold(trained, wiring.input_units(config), wiring.output_units(config)).to(self._lm.device).requires_grad_(False)
        fidelity = measure(self._lm, sae, inputs, outputs, self._text, baseline, self._config.splice_special)
        result = _result(record, config, inputs, outputs if wiring.targets else (), layout, baseline, fidelity)
        probes = self._prober.probe(sae, inputs) if self._prober else ()
        evaluation = Evaluation(result, fidelity.histogram, baseline.rows, self._settings, probes)
        data = evaluation.to_record()
        if self._bucket.exists(layout.config) and job.step == checkpoint.newest(self._bucket, layout):
            self._bucket.write(layout.metrics, data)
        self._bucket.write(layout.checkpoint(job.step).metrics, data)  # written last: it commits the evaluation
        metrics.EVALUATIONS.inc()
        metrics.EVALUATED_FVU.labels(job.sae).set(fidelity.fvu)
        metrics.EVALUATED_DELTA_LOSS.labels(job.sae).set(evaluation.result.delta_loss)
        return job.sae

    def stop(self) -> None:
        """Start no further checkpoint. The current one is finished."""
        self._stop.set()


def _result(
    record: checkpoint.CheckpointRecord,
    config: SaeConfig,
    inputs: tuple[Hook, ...],
    targets: tuple[Hook, ...],
    layout: SaeLayout,
    base: Baseline,
    fidelity: Fidelity,
) -> Result:
    return Result(
        hook=label(inputs, targets),
        layer=inputs[0].layer,
        site="--".join(dict.fromkeys(hook.site for hook in inputs + targets)),
        architecture=config.architecture,
        width=config.width,
        sparsity=config.sparsity,
        step=record.step,
        tokens=record.tokens,
        l0=fidelity.l0,
        fvu=fidelity.fvu,
        dead_fraction=fidelity.dead_fraction,
        loss_clean=base.loss_clean,
        loss_spliced=fidelity.loss_spliced,
        loss_zero_ablated=base.loss_zero_ablated,
        loss_mean_ablated=base.loss_mean_ablated,
        delta_loss=fidelity.loss_spliced - base.loss_clean,
        recovered_zero=_recovered(base.loss_zero_ablated, fidelity.loss_spliced, base.loss_clean),
        recovered_mean=_recovered(base.loss_mean_ablated, fidelity.loss_spliced, base.loss_clean),
        path=layout.checkpoint(record.step).root,
        decoder_cosine=fidelity.decoder_cosine,
    )


def _recovered(ablated: float, spliced: float, clean: float) -> float:
    """Return the share of the ablation's loss that the SAE recovers: 1 is perfect."""
    return (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")


# One thread to evaluate and one for stop.
EvaluatorActor: ActorClass[Evaluator] = ray.remote(max_concurrency=2, max_restarts=3, max_task_retries=3)(Evaluator)  # type: ignore[call-overload]
