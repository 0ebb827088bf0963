"""Measure checkpoints and commit each result, in a Ray actor."""

import math
import threading
from dataclasses import replace

import ray
import torch
from ray.actor import ActorClass

from scopemill.evaluator.config import EvaluationConfig
from scopemill.evaluator.fidelity.jobs import Job, committed, settings_of
from scopemill.evaluator.fidelity.kept_rows import kept_text
from scopemill.evaluator.fidelity.measure import Baseline, EvaluationText, Fidelity, measure, measure_baseline
from scopemill.evaluator.fidelity.results import Evaluation, Result
from scopemill.evaluator.probes.actor import Prober
from scopemill.harvester.config import CorpusConfig, ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.text.packed_text import load_sequences
from scopemill.harvester.text.packing import Sequences, pack_sequences
from scopemill.harvester.text.tokens import tokenized_documents
from scopemill.proto import metrics
from scopemill.proto.dataset import read_manifest
from scopemill.proto.errors import CorpusError, NotFinite, ScopemillError, Stopped
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout, SaeLayout
from scopemill.proto.memory import keep_freed_memory
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Wiring, label
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.training import checkpoint


def load_text(
    bucket: Bucket, dataset: str, model: ModelConfig, card: ModelCard, config: EvaluationConfig, context_length: int, drop_first: int = 0
) -> EvaluationText:
    """Load the text to evaluate on: the evaluation's own corpus, or the harvest's reserved sequences."""
    if config.corpus is None:
        block = load_sequences(bucket, DatasetLayout(dataset).reserved)[: config.sequences]
        if len(block) < config.sequences:
            raise CorpusError(f"evaluation.sequences: {dataset} reserved {len(block)} sequences for evaluation, not {config.sequences}")
    else:
        block = _pack(model, card, config.corpus, config.sequences, context_length, drop_first)
    is_row = torch.from_numpy(block.row_mask(card.special))
    return EvaluationText(torch.from_numpy(block.tokens), is_row, config.sequences_per_forward)


def _pack(model: ModelConfig, card: ModelCard, corpus: CorpusConfig, wanted: int, context_length: int, drop_first: int) -> Sequences:
    packed: list[Sequences] = []
    for sequence in pack_sequences(tokenized_documents(model, card, corpus), context_length, card.bos, drop_first):
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

    def __init__(
        self,
        bucket_url: str,
        dataset: str,
        model: ModelConfig,
        card: ModelCard,
        config: EvaluationConfig,
        context_length: int,
        outlier_norm: float | None = None,
        drop_first: int = 0,
    ):
        keep_freed_memory()
        torch.set_num_threads(max(1, int(config.cpus)))
        self._bucket, self._config = Bucket(bucket_url), config
        self._settings = settings_of(config, dataset, context_length, outlier_norm)
        self._lm = LanguageModel(model)
        self._texts = [load_text(self._bucket, dataset, model, card, config, context_length, drop_first)]
        if outlier_norm:
            self._texts.append(kept_text(self._lm, self._texts[0], read_manifest(self._bucket, dataset)))
        self._baselines: dict[tuple[Hook, ...], list[Baseline] | ScopemillError] = {}
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
        baselines = self._baselines_of(outputs)
        sae = fold(trained, wiring.input_units(config), wiring.output_units(config)).to(self._lm.device).requires_grad_(False)
        del trained  # its weights are as large as the SAE's own
        measured = [
            _checked(layout, job.step, measure(self._lm, sae, inputs, outputs, text, baseline, self._config.splice_special))
            for text, baseline in zip(self._texts, baselines, strict=True)
        ]
        (baseline, *kept_baseline), (fidelity, *kept) = baselines, measured
        result = result_of(
            inputs, outputs if wiring.targets else (), baseline, fidelity, architecture=config.architecture, width=config.width,
            sparsity=config.sparsity, step=record.step, tokens=record.tokens, path=layout.checkpoint(record.step).root,
        )  # fmt: skip
        probes = self._prober.probe(sae, inputs) if self._prober else ()
        evaluation = Evaluation(result, fidelity.histogram, baseline.rows, self._settings, probes=probes)
        if kept:
            evaluation = _with_kept(evaluation, kept_baseline[0], kept[0])
        data = evaluation.to_record()
        if self._bucket.exists(layout.config) and job.step == checkpoint.newest(self._bucket, layout):
            self._bucket.write(layout.metrics, data)
        self._bucket.write(layout.checkpoint(job.step).metrics, data)  # written last: it commits the evaluation
        metrics.EVALUATIONS.inc()
        metrics.EVALUATED_FVU.labels(job.sae).set(fidelity.fvu)
        metrics.EVALUATED_DELTA_LOSS.labels(job.sae).set(evaluation.result.delta_loss)
        return job.sae

    def _baselines_of(self, outputs: tuple[Hook, ...]) -> list[Baseline]:
        """Return the baseline of each text. What makes a hook's baseline impossible is found once, and told of each of its SAEs."""
        if outputs not in self._baselines:
            try:
                splice_special = self._config.splice_special
                self._baselines[outputs] = [measure_baseline(self._lm, outputs, text, splice_special) for text in self._texts]
            except ScopemillError as error:
                self._baselines[outputs] = error
        found = self._baselines[outputs]
        if isinstance(found, ScopemillError):
            raise found
        return found

    def stop(self) -> None:
        """Start no further checkpoint. The current one is finished."""
        self._stop.set()


def _checked(layout: SaeLayout, step: int, fidelity: Fidelity) -> Fidelity:
    for name in ("fvu", "l0", "loss_spliced"):
        if not math.isfinite(value := getattr(fidelity, name)):
            raise NotFinite(f"{layout.checkpoint(step).root}: {name} is {value}: the SAE's reconstruction is not finite on this text")
    return fidelity


def _with_kept(evaluation: Evaluation, base: Baseline, fidelity: Fidelity) -> Evaluation:
    """Add the figures of the rows that the harvest's outlier filter keeps."""
    delta = fidelity.loss_spliced - base.loss_clean
    result = replace(evaluation.result, l0_kept=fidelity.l0, fvu_kept=fidelity.fvu, delta_loss_kept=delta)
    return replace(evaluation, result=result, kept_tokens=base.rows)


def result_of(
    inputs: tuple[Hook, ...], targets: tuple[Hook, ...], base: Baseline, fidelity: Fidelity, *, architecture: str, width: int,
    sparsity: float, step: int, tokens: int, path: str,
) -> Result:  # fmt: skip
    """Return what was measured of an SAE as a row of results."""
    return Result(
        hook=label(inputs, targets),
        layer=inputs[0].layer,
        site="--".join(dict.fromkeys(hook.site for hook in inputs + targets)),
        architecture=architecture,
        width=width,
        sparsity=sparsity,
        step=step,
        tokens=tokens,
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
        path=path,
        decoder_cosine=fidelity.decoder_cosine,
    )


def _recovered(ablated: float, spliced: float, clean: float) -> float:
    """Return the share of the ablation's loss that the SAE recovers: 1 is perfect."""
    return (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")


# One thread to evaluate and one for stop.
EvaluatorActor: ActorClass[Evaluator] = ray.remote(max_concurrency=2, max_restarts=3, max_task_retries=3)(Evaluator)  # type: ignore[call-overload]
