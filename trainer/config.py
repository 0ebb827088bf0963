"""What to train and how: the fields of a sweep's ``train`` section, and the presets that fill them."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from scopemill.proto.config import Config

# gemma-scope is the table of arXiv 2408.05147. quick is for budgets of a few million tokens: a higher learning rate that
# decays at the end, warm-ups to match, a wider kernel so that thresholds move within the few steps there are.
PRESETS: dict[str, dict[str, Any]] = {
    "gemma-scope": dict(
        tokens=4_000_000_000, batch_size=4096, learning_rate=7e-5, lr_warmup_steps=1000, lr_decay_fraction=0.0,
        sparsity_warmup_steps=10_000, adam_beta2=0.999, adam_epsilon=1e-8, initial_threshold=0.001, bandwidth=0.001,
        initial_decoder_bias="zero", dead_after_tokens=10_000_000, checkpoint_every=50_000, log_every=100,
    ),
    "quick": dict(
        tokens=1_000_000, batch_size=1024, learning_rate=1e-3, lr_warmup_steps=50, lr_decay_fraction=0.3,
        sparsity_warmup_steps=300, adam_beta2=0.999, adam_epsilon=1e-8, initial_threshold=0.03, bandwidth=0.03,
        initial_decoder_bias="mean", dead_after_tokens=200_000, checkpoint_every=500, log_every=20,
    ),
}  # fmt: skip


class Recipe(Config):
    """How an SAE is trained, whatever its width and sparsity."""

    model_config = ConfigDict(allow_inf_nan=False)

    architecture: Literal["jumprelu", "standard"] = Field("jumprelu", description="JumpReLU with an L0 penalty, or ReLU with an L1.")
    tokens: int = Field(ge=1, description="Rows to train on; steps = tokens / batch_size, rounded up.")
    batch_size: int = Field(ge=1, description="Rows per step.")
    learning_rate: float = Field(gt=0, description="Adam's, after the warm-up.")
    lr_warmup_steps: int = Field(ge=0, description="Cosine warm-up from a tenth of the learning rate.")
    lr_decay_fraction: float = Field(ge=0, le=1, description="Last part of the steps over which the rate falls linearly to zero.")
    sparsity_warmup_steps: int = Field(ge=0, description="Steps over which the sparsity coefficient rises linearly from zero.")
    adam_beta2: float = Field(ge=0, lt=1, description="Decay of Adam's second moment; there is no first (beta1 = 0).")
    adam_epsilon: float = Field(gt=0, description="Adam's.")
    initial_threshold: float = Field(ge=0, description="JumpReLU's threshold at the start.")
    bandwidth: float = Field(gt=0, description="Width of the kernel that gives JumpReLU's threshold its gradient.")
    initial_decoder_bias: Literal["zero", "mean"] = Field(description="Where the decoder's bias starts.")
    dead_after_tokens: int = Field(ge=1, description="A latent that has not fired for so many tokens counts as dead.")
    checkpoint_every: int = Field(ge=1, description="Steps between checkpoints; the last step has one too.")
    log_every: int = Field(ge=1, description="Steps per row of the history.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of the initial weights.")

    @model_validator(mode="after")
    def _at_least_one_step(self):
        if self.tokens < self.batch_size:
            raise ValueError(f"tokens ({self.tokens}) is less than one batch (batch_size = {self.batch_size})")
        return self

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.batch_size)  # rounded up: Gemma Scope's 4B tokens are 976,563 steps


class SaeConfig(Recipe):
    """Everything that decides one SAE's weights, given its stream."""

    width: int = Field(ge=1, description="Number of latents.")
    sparsity: float = Field(ge=0, description="Coefficient of the sparsity penalty (lambda), for activations with E||x||^2 = 1.")


class TrainConfig(Recipe):
    """A sweep's ``train`` section: every width with every sparsity, at every hook."""

    preset: str = Field("gemma-scope", description="Fills every field that is not given: gemma-scope or quick.")
    # Not strict about the sequence's type: what _fill_from_preset returns is Python's, where a YAML list is a list.
    widths: tuple[int, ...] = Field(strict=False, min_length=1, description="Numbers of latents.")
    sparsities: tuple[float, ...] = Field(strict=False, min_length=1, description="Sparsity coefficients.")
    at_once: int = Field(16, ge=1, description="Trainers that run at the same time.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves per trainer; also its threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves per trainer; a fraction shares one.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        name = value.get("preset", "gemma-scope")
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset {name!r} is not known: there are {', '.join(PRESETS)}")
        return PRESETS[name] | value

    @model_validator(mode="after")
    def _sensible(self):
        for field in ("widths", "sparsities"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field} names a value twice")
        if min(self.widths) < 1 or min(self.sparsities) < 0:
            raise ValueError("widths must be at least 1, and sparsities not negative")
        return self

    def saes(self) -> list[SaeConfig]:
        """One configuration per SAE of a hook."""
        recipe = {name: getattr(self, name) for name in Recipe.model_fields}
        return [SaeConfig(width=w, sparsity=s, **recipe) for w in self.widths for s in self.sparsities]
