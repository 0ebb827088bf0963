"""Describe evaluation jobs: a checkpoint to measure, its settings, and its committed result."""

from dataclasses import dataclass
from typing import Any

from scopemill.evaluator.config import EvaluationConfig
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket


@dataclass(frozen=True)
class Job:
    """Describe one checkpoint to measure."""

    sae: str  # name of the SAE in the sweep
    root: str  # folder of the SAE in the bucket
    step: int


def settings_of(config: EvaluationConfig, dataset: str, context_length: int, outlier_norm: float | None = None) -> dict[str, Any]:
    """Return the settings that decide an evaluation's numbers. The result keeps a copy of them.

    ``outlier_norm`` is the harvest's; without such a filter it does not enter.
    """
    return {
        "corpus": config.corpus.model_dump() if config.corpus else f"reserved sequences of {dataset}",
        "sequences": config.sequences,
        "context_length": context_length,
        "splice_special": config.splice_special,
        **({"outlier_norm": outlier_norm} if outlier_norm else {}),
    }


def committed(bucket: Bucket, job: Job, settings: dict[str, Any]) -> Evaluation | None:
    """Return the committed evaluation of a checkpoint.

    None if there is none with these settings, or a damaged one.
    """
    try:
        evaluation = Evaluation.read(bucket, SaeLayout(job.root).checkpoint(job.step).metrics)
    except (CorruptObject, MissingObject):
        return None
    return evaluation if evaluation.settings == settings else None
