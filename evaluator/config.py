"""Configure an evaluation: text, checkpoints and resources."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from scopemill.harvester.config import CorpusConfig
from scopemill.proto.config import Config, NodeLabels, Place


class ProbesConfig(Config):
    """Describe k-sparse probing.

    In a sweep file `probes: FOLDER` is short for `probes: {source: FOLDER}`.
    """

    source: Place = Field(
        min_length=1,
        description="A folder, at any fsspec URL, of csv or csv.zst files with the columns prompt and target, such as sae-probes has. "
        "Files with two targets are tasks.",
    )
    tasks: tuple[str, ...] = Field(
        ("*",), strict=False, min_length=1, description="Patterns of file names, without endings, that are probed."
    )
    examples: int = Field(1024, ge=40, description="Prompts of a task at most: half of each target; three tenths are the test.")
    k: tuple[int, ...] = Field((1, 5, 16), strict=False, min_length=1, description="Numbers of latents that a probe sees.")

    # What this returns is no JSON any more, and strict mode takes no list for a tuple there: hence strict=False above.
    @model_validator(mode="before")
    @classmethod
    def _accept_folder_alone(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if min(self.k) < 1 or len(set(self.k)) != len(self.k):
            raise ValueError("k must name numbers of latents from 1 on, and none twice")
        return self


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
    probes: ProbesConfig | None = Field(
        None, description="Also probe each measured checkpoint's latents on these labelled prompts: a folder, or a mapping with more."
    )
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
    page: bool = Field(
        False, description="Also write each SAE's latents as a static page, which the report links to: about 10 KiB a latent."
    )
    firings_at_once: int = Field(
        2**27, ge=1, description="Firings of one SAE that are held at once. A shard with more is read again for each slice of latents."
    )
    memory_gib: float = Field(
        4,
        gt=0,
        description="Memory, about, for the SAEs that an actor counts at once. Where not all SAEs of a hook fit, shards are read again for "
        "each further group of them.",
    )
    actors: int = Field(1, ge=1, description="Number of evidence actors.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves for each actor; also its number of threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for each actor.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that the actors run on. Default: any node.")

    @property
    def settings(self) -> dict[str, int]:
        """Return the fields that decide the evidence's bytes."""
        machine = {"page", "firings_at_once", "memory_gib", "actors", "cpus", "gpus", "labels"}
        return {name: value for name, value in self.model_dump().items() if name not in machine}
