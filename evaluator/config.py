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


class EvidenceConfig(Config):
    """Describe what is kept of every latent, and the resources to find it."""

    top: int = Field(32, ge=1, le=1024, description="Top contexts of each latent, each from another sequence.")
    samples: int = Field(6, ge=0, le=256, description="Sampled contexts of each of the eight intervals of a latent's activations.")
    window: int = Field(64, ge=1, description="Tokens of a context; at most the context length.")
    token_samples: int = Field(64, ge=1, le=4096, description="Sampled tokens on which a latent fires, for its most frequent token.")
    logits: int = Field(12, ge=1, le=512, description="Promoted and suppressed output tokens of each latent.")
    neighbours: int = Field(12, ge=1, le=512, description="Nearest latents of each latent, by decoder cosine and by co-firing.")
    cofiring_rows: int = Field(2**18, ge=1, description="Rows, about, on which co-firing is counted.")
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of all samples.")
    firings_at_once: int = Field(
        2**27, ge=1, description="Firings of one SAE that are held at once. A shard with more is read again for each slice of latents."
    )
    actors: int = Field(1, ge=1, description="Number of evidence actors.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves for each actor; also its number of threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for each actor.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that the actors run on. Default: any node.")

    @property
    def settings(self) -> dict[str, int]:
        """Return the fields that decide the evidence's bytes."""
        machine = {"firings_at_once", "actors", "cpus", "gpus", "labels"}
        return {name: value for name, value in self.model_dump().items() if name not in machine}
