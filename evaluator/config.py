"""How finished and half-finished SAEs are measured."""

from typing import Literal

from pydantic import Field

from scopemill.harvester.config import CorpusConfig
from scopemill.proto.config import Config, NodeLabels


class EvaluationConfig(Config):
    corpus: CorpusConfig | None = Field(
        None, description="Text to evaluate on; absent: the first sequences of the harvest's corpus, which are then never harvested."
    )
    sequences: int = Field(2048, ge=1, description="Sequences of the harvest's context length.")
    sequences_per_forward: int = Field(32, ge=1, description="Sequences in one forward pass.")
    splice_special: bool = Field(False, description="Also splice BOS, EOS and PAD positions; by default they keep the original.")
    checkpoints: Literal["all", "last"] = Field("all", description="Which checkpoints of each SAE.")
    actors: int = Field(1, ge=1, description="Evaluator actors.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves per evaluator; also its threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves per evaluator.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that evaluators run on; absent: any node.")
