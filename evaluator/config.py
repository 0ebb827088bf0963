"""Configure an evaluation: text, checkpoints and resources."""

from typing import Literal

from pydantic import Field

from scopemill.harvester.config import CorpusConfig
from scopemill.proto.config import Config, NodeLabels


class EvaluationConfig(Config):
    """Describe how checkpoints are measured."""

    corpus: CorpusConfig | None = Field(
        None, description="Text to evaluate on. Default: the first sequences of the harvest's corpus, which are then never harvested."
    )
    sequences: int = Field(2048, ge=1, description="Number of sequences to evaluate on, each of the harvest's context length.")
    sequences_per_forward: int = Field(32, ge=1, description="Sequences in one forward pass.")
    splice_special: bool = Field(
        False, description="Also replace activations at BOS, EOS and PAD. Default: they keep the original activations."
    )
    checkpoints: Literal["all", "last"] = Field("all", description="Which checkpoints of each SAE to measure.")
    actors: int = Field(1, ge=1, description="Number of evaluator actors.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves for each evaluator; also its number of threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for each evaluator.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that evaluators run on. Default: any node.")
