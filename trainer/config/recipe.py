"""How one SAE is trained: the fields that decide its weights, and which of them fit together."""

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from scopemill.proto.config import Config

ActivationName = Literal["relu", "gated", "jumprelu", "topk", "batchtopk"]
ArchitectureName = Literal[
    "standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka", "skip",
    "transcoder", "skip_transcoder", "crosscoder", "clt", "per_layer_transcoder",
]  # fmt: skip
# The words that name an activation, and what the others use unless told.
OWN_ACTIVATION: dict[str, ActivationName] = {
    "standard": "relu", "gated": "gated", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "batchtopk",
}  # fmt: skip
USUAL_ACTIVATION: dict[str, ActivationName] = {"matryoshka": "batchtopk"}
PAIRED = ("transcoder", "skip_transcoder", "clt", "per_layer_transcoder")  # read one site, rebuild another
LAYERED = ("crosscoder", "clt", "per_layer_transcoder")  # span every layer that is harvested
UNDIVIDED = ("clt", "per_layer_transcoder")  # by latents, over several trainers: they have some in each layer


class Recipe(Config):
    """How an SAE is trained, whatever its width and sparsity."""

    model_config = ConfigDict(allow_inf_nan=False)

    architecture: ArchitectureName = Field("jumprelu", description="Which kind of SAE; docs/training-guide.md describes each.")
    activation: ActivationName | None = Field(
        None,
        description="Between encoder and decoder, where the architecture leaves it open: jumprelu, for matryoshka batchtopk.",
    )
    input_site: str = Field("mlp_in", description="Of transcoders: the site that is read.")
    target_site: str = Field("mlp_out", description="Of transcoders: the site of the same layer that is rebuilt.")
    tokens: int = Field(ge=1, description="Rows to train on; steps = tokens / batch_size, rounded up.")
    batch_size: int = Field(ge=1, description="Rows per step.")
    accumulate: int = Field(1, ge=1, description="Parts that a batch is cut into to save memory; their gradients are added up.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Of the matrix products; weights and sums are float32 always.")
    normalization: Literal["scale", "sqrt_d", "none", "layer_norm"] = Field(
        "scale", description="What the SAE sees: E||x||^2 = 1, E||x||^2 = d, raw activations, or each row with mean 0 and variance 1."
    )
    learning_rate: float = Field(gt=0, description="Adam's, after the warm-up.")
    lr_warmup_steps: int = Field(ge=0, description="Cosine warm-up from a tenth of the learning rate.")
    lr_decay_fraction: float = Field(ge=0, le=1, description="Last part of the steps over which the rate falls linearly to zero.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of Adam's second moment; there is no first (beta1 = 0).")
    adam_epsilon: float = Field(1e-8, gt=0, description="Adam's.")
    clip_gradient: float | None = Field(None, gt=0, description="The largest norm of the whole gradient; absent: not clipped.")
    sparsity_warmup_steps: int = Field(ge=0, description="Steps over which the sparsity coefficient rises linearly from zero.")
    sparsity_warmup_fraction: float = Field(0, ge=0, le=1, description="The same as a share of all steps; the longer of the two counts.")
    penalty: Literal["l0", "tanh", "target_l0"] = Field(
        "l0", description="JumpReLU's: lambda ||f||_0, lambda sum tanh(c f ||W_dec||), or 2 lambda / L0* (L0 - L0*)^2 with L0* = sparsity."
    )
    target_coefficient: float = Field(0.01, gt=0, description="lambda of the target_l0 penalty.")
    frequency_limit: float | None = Field(
        None,
        gt=0,
        le=1,
        description="f0 of the frequency term sum p^2 / f0, which is added under l0 and target_l0; absent: no such term.",
    )
    tanh_scale: float = Field(4, gt=0, description="c of the tanh penalty.")
    pre_activation_coefficient: float = Field(0, ge=0, description="lambda_P of sum ReLU(theta - z) ||W_dec||, which revives dead latents.")
    initial_threshold: float = Field(0.001, ge=0, description="JumpReLU's threshold at the start.")
    initial_l0: float | None = Field(None, gt=0, description="Take the first thresholds from the first batch instead, so that L0 is this.")
    initial_sae: str | None = Field(None, description="Start from a finished SAE of the same kind and shape: its folder, any fsspec URL.")
    bandwidth: float = Field(0.001, gt=0, description="Width of the kernel that gives JumpReLU's threshold its gradient.")
    initial_decoder_bias: Literal["zero", "mean"] = Field("zero", description="Where the decoder's bias starts.")
    prefixes: tuple[float, ...] = Field(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), strict=False, min_length=1, description="Matryoshka's nested parts, as shares of the width."
    )
    skip_rank: int = Field(8, ge=1, description="Rank of the linear map beside a skip SAE; a skip_transcoder's is a full matrix.")
    auxk_coefficient: float = Field(1 / 32, ge=0, description="Of the loss by which topk and batchtopk revive dead latents (AuxK).")
    auxk_latents: int | None = Field(None, ge=1, description="Dead latents that AuxK lets rebuild the error; absent: d / 2.")
    resample_every: int | None = Field(None, ge=1, description="Steps after which dead latents are drawn anew from badly rebuilt rows.")
    resample_until: float = Field(0.5, gt=0, le=1, description="Share of the steps after which no latent is drawn anew.")
    dead_after_tokens: int = Field(ge=1, description="A latent that has not fired for so many tokens counts as dead.")
    checkpoint_every: int = Field(ge=1, description="Steps between checkpoints; the last step has one too.")
    log_every: int = Field(ge=1, description="Steps per row of the history.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of the initial weights.")

    @model_validator(mode="after")
    def _fits_together(self):
        if self.tokens < self.batch_size:
            raise ValueError(f"tokens ({self.tokens}) is less than one batch (batch_size = {self.batch_size})")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size ({self.batch_size}) cannot be cut into accumulate = {self.accumulate} equal parts")
        if self.counts_latents and self.batch_size == self.accumulate:
            raise ValueError(
                f"batch_size ({self.batch_size}): {self.latents} divides errors by the variance over a part's rows, which takes two"
            )
        own = OWN_ACTIVATION.get(self.architecture)
        if own and self.activation not in (None, own):
            raise ValueError(f"activation: {self.architecture} has its own ({own}), not {self.activation}")
        if self.activation == "gated" and self.architecture in PAIRED + LAYERED:
            raise ValueError(f"activation: {self.architecture} is not trained with gated latents; take relu, jumprelu, topk or batchtopk")
        if self.normalization == "layer_norm" and self.architecture in PAIRED + LAYERED:
            raise ValueError(f"normalization: layer_norm is for SAEs of one hook, not for a {self.architecture}; take scale")
        if self.initial_decoder_bias == "mean" and self.normalization == "layer_norm":
            raise ValueError("initial_decoder_bias: the mean of rows under layer_norm is not known before training; take zero")
        if self.resample_every and (self.architecture in PAIRED + LAYERED or self.latents in ("gated", "topk", "batchtopk")):
            raise ValueError(
                f"resample_every: a {self.architecture} with {self.latents} latents is not resampled; it is for ReLU and JumpReLU SAEs"
            )
        if list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[0] <= 0 or self.prefixes[-1] != 1:
            raise ValueError("prefixes: shares of the width that rise to 1, such as [0.25, 0.5, 1]")
        if self.architecture in PAIRED and self.input_site == self.target_site:
            raise ValueError(f"target_site: a {self.architecture} rebuilds another site than it reads, not {self.target_site} again")
        return self

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.batch_size)  # rounded up: Gemma Scope's 4B tokens are 976,563 steps

    @property
    def latents(self) -> ActivationName:
        """The activation in use."""
        return OWN_ACTIVATION.get(self.architecture) or self.activation or USUAL_ACTIVATION.get(self.architecture, "jumprelu")

    @property
    def counts_latents(self) -> bool:
        """Whether ``sparsity`` is a number of latents (k), or below 1 a share of the width, instead of a coefficient."""
        return self.latents in ("topk", "batchtopk")


class SaeConfig(Recipe):
    """Everything that decides one SAE's weights, given its stream."""

    width: int = Field(ge=1, description="Number of latents; of clt and per_layer_transcoder in each layer.")
    sparsity: float = Field(ge=0, description="How sparse: lambda; for topk kinds k, or below 1 a share of the width; for target_l0 L0*.")

    @model_validator(mode="after")
    def _sparse_enough(self):
        if self.counts_latents:
            k = self.sparsity * self.width if self.sparsity < 1 else self.sparsity
            if k < 1 or k > self.width or (self.sparsity >= 1 and k != int(k)):
                raise ValueError(
                    f"sparsity ({self.sparsity:g}) is k here: a whole number from 1 to the width ({self.width}), or a share of it"
                )
        elif self.latents == "jumprelu" and self.penalty == "target_l0" and not 0 < self.sparsity <= self.width:
            raise ValueError(f"sparsity ({self.sparsity:g}) is the wanted L0 here: above 0, at most the width ({self.width})")
        return self

    @property
    def k(self) -> int:
        """Latents per row that a topk kind keeps."""
        return max(1, round(self.sparsity * self.width)) if self.sparsity < 1 else int(self.sparsity)

    @property
    def coefficient(self) -> float:
        """What the sparsity penalty counts with, once warmed up."""
        if self.counts_latents:
            return 0.0
        return self.target_coefficient if self.latents == "jumprelu" and self.penalty == "target_l0" else self.sparsity
