"""Evaluation jobs: which checkpoint is measured with which settings, and whether that is done."""

from dataclasses import dataclass

from scopemill.evaluator.config import EvaluationConfig
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket


@dataclass(frozen=True)
class Job:
    """One checkpoint to measure."""

    sae: str  # its name in the sweep
    root: str  # its folder in the bucket
    step: int


def settings_of(config: EvaluationConfig, dataset: str, context_length: int) -> dict:
    """What decides an evaluation's numbers, as kept beside them: with other settings it is another evaluation."""
    return {
        "corpus": config.corpus.model_dump() if config.corpus else f"reserved sequences of {dataset}",
        "sequences": config.sequences,
        "context_length": context_length,
        "splice_special": config.splice_special,
    }


def committed(bucket: Bucket, job: Job, settings: dict) -> Evaluation | None:
    """The evaluation of a checkpoint, if it was done with these settings."""
    path = SaeLayout(job.root).checkpoint(job.step).metrics
    if not bucket.exists(path):
        return None
    evaluation = Evaluation.read(bucket, path)
    return evaluation if evaluation.settings == settings else None
