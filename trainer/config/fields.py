"""Declare the fields of the recipe in parts, by which SAEs read them."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from scopemill.proto.config import Config, Place

ActivationName = Literal["relu", "gated", "jumprelu", "topk", "batchtopk"]
ArchitectureName = Literal[
    "standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka", "skip",
    "transcoder", "skip_transcoder", "crosscoder", "clt", "per_layer_transcoder",
]  # fmt: skip
PenaltyName = Literal["l0", "tanh", "target_l0"]
# Architectures with one fixed activation; the others take `activation`, and without it these defaults, or else jumprelu.
OWN_ACTIVATION: dict[str, ActivationName] = {
    "standard": "relu", "gated": "gated", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "batchtopk",
}  # fmt: skip
USUAL_ACTIVATION: dict[str, ActivationName] = {"matryoshka": "batchtopk"}
PAIRED = ("transcoder", "skip_transcoder", "clt", "per_layer_transcoder")  # read one site, reconstruct another
LAYERED = ("crosscoder", "clt", "per_layer_transcoder")  # span every harvested layer
UNDIVIDED = ("clt", "per_layer_transcoder")  # have latents in every layer, so latents cannot be sharded over trainers


def latents_of(architecture: str, activation: str | None) -> str:
    """Return the activation in use: the architecture's own, the given one, or the default."""
    return OWN_ACTIVATION.get(architecture) or activation or USUAL_ACTIVATION.get(architecture, "jumprelu")


class EverySae(Config):
    """Hold the fields that every SAE reads."""

    model_config = ConfigDict(allow_inf_nan=False)

    architecture: ArchitectureName = Field("jumprelu", description="The kind of SAE; docs/training-guide.md describes each.")
    activation: ActivationName | None = Field(
        None,
        description="The activation between encoder and decoder. standard, gated, jumprelu, topk and batchtopk have their own; absent: "
        "batchtopk for matryoshka, else jumprelu.",
    )
    tokens: int = Field(ge=1, description="Rows to train on; the number of steps is tokens / batch_size, rounded up.")
    batch_size: int = Field(ge=1, description="Rows per step.")
    accumulate: int = Field(1, ge=1, description="Cut each batch into this many equal parts and add up their gradients, to save memory.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of the matrix products; weights and sums are always float32."
    )
    normalization: Literal["scale", "sqrt_d", "none", "layer_norm"] = Field(
        "scale",
        description="How activations are scaled for the SAE. scale: E||x||^2 = 1; sqrt_d: E||x||^2 = d; none: raw activations; "
        "layer_norm: each row has mean 0 and variance 1.",
    )
    learning_rate: float = Field(gt=0, description="Learning rate of Adam after the warm-up.")
    lr_warmup_steps: int = Field(ge=0, description="Steps over which the learning rate rises, as a cosine, from a tenth to its full value.")
    lr_decay_fraction: float = Field(
        ge=0, le=1, description="Share of the steps, at the end, over which the learning rate falls linearly to zero."
    )
    initial_sae: Place | None = Field(
        None,
        description="Finished SAE of the same kind and shape to start from: its folder, at any fsspec URL; absent: random weights.",
    )
    initial_scale: Literal["least_squares", "as_published"] = Field(
        "least_squares",
        description="Scale of the encoder's initial weights. least_squares: the scale with which the first batch is reconstructed best; "
        "as_published: the unit-norm rows of Gemma Scope, which overshoot.",
    )
    dead_after_tokens: int = Field(ge=1, description="A latent counts as dead once it has not fired for this many tokens.")
    checkpoint_every: int = Field(ge=1, description="Steps between checkpoints; the last step has a checkpoint too.")
    log_every: int = Field(ge=1, description="Steps per row of the history.")
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the initial weights and of resampling.")

    @property
    def steps(self) -> int:
        """Return the number of training steps."""
        return -(-self.tokens // self.batch_size)  # rounded up: Gemma Scope's 4B tokens are 976,563 steps

    @property
    def latents(self) -> str:
        """Return the name of the activation in use."""
        return latents_of(self.architecture, self.activation)

    @property
    def counts_latents(self) -> bool:
        """Return whether ``sparsity`` is k, or below 1 a share of the width."""
        return self.latents in ("topk", "batchtopk")


class Adam(Config):
    """Hold the fields of the optimiser."""

    adam_beta1: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay rate of Adam's first moment; with 0, as in Gemma Scope, none is kept, which saves memory and time.",
    )
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay rate of Adam's second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Adam's epsilon, which is added to the root of the second moment.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Decoupled weight decay (AdamW): each step multiplies encoder, decoder and skip by 1 - learning rate * weight_decay; "
        "a decoder whose rows are kept at unit norm does not decay.",
    )
    clip_gradient: float | None = Field(None, gt=0, description="Largest global gradient norm; absent: gradients are not clipped.")


class Tied(Config):
    """Hold the choice of one matrix for encoder and decoder.

    It is read by SAEs that reconstruct what they read.
    """

    tied_weights: bool = Field(
        False,
        description="Encode with the decoder's rows: one matrix for both, whose rows are then of any norm; saves a quarter of the memory.",
    )


class Untied(Config):
    """Fix that encoder and decoder are two matrices."""

    tied_weights: ClassVar[bool] = False


class SparsityWarmup(Config):
    """Hold the warm-up of the sparsity coefficient, for SAEs with a sparsity penalty."""

    sparsity_warmup_steps: int = Field(0, ge=0, description="Steps over which the sparsity coefficient rises linearly from zero.")
    sparsity_warmup_fraction: float = Field(
        0.0, ge=0, le=1, description="The sparsity warm-up as a share of all steps; the longer of the two warm-ups applies."
    )


class NoSparsityPenalty(Config):
    """Fix the sparsity warm-up where sparsity is k, not a coefficient."""

    sparsity_warmup_steps: ClassVar[int] = 0
    sparsity_warmup_fraction: ClassVar[float] = 0.0


class JumpReLU(Config):
    """Hold the fields of JumpReLU latents under any penalty."""

    penalty: PenaltyName = Field(
        "l0",
        description="Sparsity penalty of JumpReLU latents. l0: lambda ||f||_0; tanh: lambda sum tanh(c f ||W_dec||); "
        "target_l0: 2 lambda / L0* (L0 - L0*)^2, where L0* is the sparsity.",
    )
    pre_activation_coefficient: float = Field(
        0.0, ge=0, description="lambda_P of the term sum ReLU(theta - z) ||W_dec||, which revives dead latents."
    )
    initial_threshold: float = Field(0.001, ge=0, description="Initial threshold of JumpReLU latents, also after resampling.")
    initial_l0: float | None = Field(
        None, gt=0, description="Choose the initial thresholds from the first batch so that L0 has this value; absent: initial_threshold."
    )
    bandwidth: float = Field(0.001, gt=0, description="Width of the kernel that gives JumpReLU's threshold a gradient.")


class FrequencyTerm(Config):
    """Hold the term that the penalties l0 and target_l0 may add."""

    frequency_limit: float | None = Field(
        None, gt=0, le=1, description="f0 of the frequency term sum p^2 / f0, where p is how often a latent fires; absent: no such term."
    )


class TargetL0(Config):
    """Hold the field of the penalty target_l0."""

    target_coefficient: float = Field(
        0.5,
        gt=0,
        description="lambda of the target_l0 penalty. L0 ends above its target by the share l / (4 lambda), where l is the coefficient of "
        "the l0 penalty that would give this L0.",
    )


class Tanh(Config):
    """Hold the field of the penalty tanh."""

    tanh_scale: float = Field(4.0, gt=0, description="c of the tanh penalty.")


class AuxK(Config):
    """Hold the fields of topk and batchtopk latents."""

    auxk_coefficient: float = Field(1 / 32, ge=0, description="Coefficient of the auxiliary loss AuxK, which revives dead latents.")
    auxk_latents: int | None = Field(
        None, ge=1, description="Number of dead latents per row that AuxK uses to reconstruct the error; absent: d / 2."
    )


class DecoderBias(Config):
    """Hold the choice of the decoder's initial bias."""

    initial_decoder_bias: Literal["zero", "mean"] = Field(
        "zero", description="Initial decoder bias: zero, or the mean of the activations to reconstruct."
    )


class MeanDecoderBias(Config):
    """Fix the decoder's initial bias of a skip_transcoder, whose decoder and skip start at zero."""

    initial_decoder_bias: ClassVar[Literal["mean"]] = "mean"


class Matryoshka(Config):
    """Hold the fields of Matryoshka SAEs."""

    prefixes: tuple[float, ...] = Field(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        strict=False,
        min_length=1,
        description="Sizes of Matryoshka's nested prefixes of the latents, as shares of the width that rise to 1.",
    )

    prefix_coefficients: tuple[float, ...] | None = Field(
        None,
        strict=False,
        description="Coefficients of the prefixes' errors, one for each prefix; the last, of all latents, is 1. Absent: 1 for each.",
    )
    detached_prefixes: bool = Field(
        False,
        description="Train each latent by one error alone, that of the smallest prefix that holds it; larger prefixes take it as given.",
    )

    @field_validator("prefixes")
    @classmethod
    def _rise_to_1(cls, prefixes: tuple[float, ...]) -> tuple[float, ...]:
        if list(prefixes) != sorted(set(prefixes)) or prefixes[0] <= 0 or prefixes[-1] != 1:
            raise ValueError("prefixes: must be shares of the width that rise to 1, such as [0.25, 0.5, 1]")
        return prefixes

    @model_validator(mode="after")
    def _one_coefficient_each(self):
        given = self.prefix_coefficients
        if given is not None and (len(given) != len(self.prefixes) or min(given) < 0 or given[-1] != 1):
            raise ValueError(
                f"prefix_coefficients: must be a number of at least 0 for each of the {len(self.prefixes)} prefixes, the last of them 1, "
                f"and are {list(given)}"
            )
        return self


class Skip(Config):
    """Hold the field of SAEs with a skip connection of low rank."""

    skip_rank: int = Field(8, ge=1, description="Rank of the linear map beside a skip SAE; a skip_transcoder has a full matrix.")


class Sites(Config):
    """Hold the fields of transcoders, which read one site and reconstruct another."""

    input_site: str = Field("mlp_in", description="The site that a transcoder reads.")
    target_site: str = Field("mlp_out", description="The site of the same layer that a transcoder reconstructs.")


class Resampling(Config):
    """Hold the fields of SAEs whose dead latents can be resampled."""

    resample_every: int | None = Field(
        None, ge=1, description="Steps between resamplings of dead latents from badly reconstructed rows; absent: no resampling."
    )
    resample_until: float = Field(0.5, gt=0, le=1, description="Share of the steps after which no latent is resampled.")


class NoResampling(Config):
    """Fix that dead latents are not resampled."""

    resample_every: ClassVar[None] = None
