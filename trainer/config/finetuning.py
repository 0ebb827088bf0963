"""Describe how finished SAEs are fine-tuned with the language model in the loop."""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from scopemill.proto.config import Config, NodeLabels

Arm = Literal["kl", "mse"]
ARMS: tuple[Arm, ...] = ("kl", "mse")
# Fields that say where and how fast the work is done, and not what comes out.
ABOUT_MACHINE = ("arms", "checkpoint_every", "actors", "cpus", "gpus", "labels")


class KlConfig(Config):
    """Describe KL fine-tuning (arXiv 2503.17272): a short last stage on the language model's own predictions."""

    arms: tuple[Arm, ...] = Field(
        ARMS,
        strict=False,
        min_length=1,
        description="kl: (alpha KL + MSE) / 2, with alpha = MSE / KL; mse: MSE alone, on the same tokens with the same decay. Compare the "
        "two: a decaying learning rate improves an SAE by itself.",
    )
    tokens: int = Field(16_000_000, ge=1, description="Tokens of fine-tuning; rounded down to whole steps.")
    sequences_per_step: int = Field(8, ge=1, description="Sequences in one step, each of the harvest's context length.")
    sequences_per_forward: int = Field(
        4, ge=1, description="Sequences in one forward pass of the language model; a step adds up the gradients of several passes."
    )
    learning_rate: float = Field(5e-5, gt=0, description="Learning rate of AdamW at the start; it falls linearly to 0.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of a step's gradient.")
    sparsity: float | None = Field(
        None,
        ge=0,
        description="Coefficient of the L1 penalty, read by ReLU SAEs alone. Default: what the SAE was trained with. Other SAEs keep their "
        "k or their thresholds.",
    )
    splice_special: bool = Field(
        False, description="Also replace activations at BOS, EOS and PAD. Default: they keep the original activations."
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints.")
    actors: int = Field(1, ge=1, description="Number of fine-tuning actors; each fine-tunes one SAE after another.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves for each actor; also its number of threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for each actor.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that the actors run on. Default: any node.")

    @model_validator(mode="after")
    def _whole_passes(self) -> Self:
        if self.sequences_per_step % self.sequences_per_forward:
            raise ValueError(
                f"sequences_per_step ({self.sequences_per_step}) has to be a multiple of sequences_per_forward "
                f"({self.sequences_per_forward})"
            )
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms names {self.arms[0]!r} twice")
        return self

    def steps(self, context_length: int) -> int:
        """Return the number of steps on sequences of a length; ValueError if there is none."""
        steps = self.tokens // (self.sequences_per_step * context_length)
        if not steps:
            raise ValueError(
                f"tokens ({self.tokens}) is less than one step of {self.sequences_per_step} sequences of {context_length} tokens: raise "
                "tokens or lower sequences_per_step"
            )
        return steps

    def id(self, arm: Arm, source: dict[str, Any]) -> str:
        """Return the suffix of a fine-tuned SAE's folder: the arm and a digest.

        The digest is of every field that decides the weights, and of ``source``: the SAE, the model and the text.
        """
        decides = self.model_dump(mode="json", exclude=set(ABOUT_MACHINE)) | {"arm": arm, "source": source}
        return f"{arm}-{hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]}"


class FinetuneConfig(Config):
    """Describe what happens to an SAE after its training."""

    kl: KlConfig = Field(description="Fine-tune each finished SAE on the language model's own predictions.")
