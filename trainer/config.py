"""What to train and how: the fields of a sweep's ``train`` section. Templates fill them, see ``templates.py``."""

import math
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from scopemill.proto.config import Config, NodeLabels
from scopemill.proto.errors import TemplateError
from scopemill.trainer.templates import load_template

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
ONE_FOR_ALL = ("tokens", "batch_size", "log_every")  # of a sweep's recipes: SAEs of a stream share batches, rivals are compared by step


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


class HalvingConfig(Config):
    """Successive halving: of rivals (SAEs that differ in sparsity alone) those that others outdo in both L0 and FVU are stopped early."""

    rungs: tuple[float, ...] = Field(
        (0.25, 0.5),
        strict=False,
        min_length=1,
        description="Shares of the steps at which rivals are compared.",
    )
    keep: float = Field(0.5, gt=0, lt=1, description="At least this share of the rivals goes on from each rung.")

    @model_validator(mode="after")
    def _rising(self):
        if list(self.rungs) != sorted(set(self.rungs)) or not 0 < self.rungs[0] <= self.rungs[-1] < 1:
            raise ValueError("rungs: shares of the steps that rise between 0 and 1, such as [0.25, 0.5]")
        return self

    def steps(self, steps: int, log_every: int) -> tuple[int, ...]:
        """The step of each rung: the first row of the history at or after its share of the steps."""
        return tuple(math.ceil(rung * steps / log_every - 1e-9) * log_every for rung in self.rungs)


class Grid(Recipe):
    """One recipe with every one of some widths and every one of some sparsities."""

    template: str = Field("gemma-scope", description="Fills every field that is not given: see `scopemill templates`.")
    # Not strict about the sequence's type: what _fill_from_template returns is Python's, where a YAML list is a list.
    widths: tuple[int, ...] = Field(strict=False, description="Numbers of latents.")
    sparsities: tuple[float, ...] = Field(
        strict=False, description="How sparse: lambdas; for topk kinds k, or below 1 shares of the width; for target_l0 the L0s."
    )

    @model_validator(mode="after")
    def _sensible(self):
        for field in ("widths", "sparsities"):
            values = getattr(self, field)
            if not values and self.makes_saes:
                raise ValueError(f"{field} has to name at least one")
            if len(set(values)) != len(values):
                raise ValueError(f"{field} names a value twice")
        if min(self.widths, default=1) < 1 or min(self.sparsities, default=0) < 0:
            raise ValueError("widths must be at least 1, and sparsities not negative")
        try:
            self.saes()  # every pair has to fit
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @property
    def makes_saes(self) -> bool:
        return True

    def saes(self) -> list[SaeConfig]:
        """One configuration per SAE of a connection."""
        if not self.makes_saes:
            return []
        recipe = {name: getattr(self, name) for name in Recipe.model_fields}
        return [SaeConfig(width=w, sparsity=s, **recipe) for w in self.widths for s in self.sparsities]


class Variant(Grid):
    """One of several recipes of a sweep: the ``train`` section with some of its fields replaced."""

    layers: tuple[int, ...] | None = Field(
        None, strict=False, min_length=1, description="Of those that are harvested; absent: all of them."
    )
    sites: tuple[str, ...] | None = Field(None, strict=False, min_length=1, description="Of those that are harvested; absent: all of them.")


class TrainConfig(Grid):
    """A sweep's ``train`` section: every width with every sparsity, at every hook; or so for each of several variants."""

    widths: tuple[int, ...] = Field((), strict=False, description="Numbers of latents; needed here or in each variant.")
    sparsities: tuple[float, ...] = Field(
        (),
        strict=False,
        description="How sparse: lambdas; for topk kinds k, or below 1 shares of the width; for target_l0 the L0s. Needed like widths.",
    )
    variants: tuple[Variant, ...] = Field(
        (),
        strict=False,
        description="Several recipes: mappings, each with fields that replace the section's own; absent: the section is the only one.",
    )
    at_once: int = Field(16, ge=1, description="Trainers that run at the same time.")
    group: int = Field(1, ge=1, description="SAEs of one stream that a trainer trains together, at most, from one copy of each batch.")
    latents_per_trainer: int | None = Field(
        None,
        ge=1,
        description="An SAE of more latents is divided over several trainers, in parts as equal as can be; absent: none is.",
    )
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves per trainer; also its threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves per trainer; a fraction shares one.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that trainers run on; absent: any node.")
    priority: dict[str, int] = Field(
        {}, description="Which SAEs come first: patterns of their names, such as '*resid_post*', and a number each; others have 0."
    )
    retries: int = Field(1, ge=0, description="How often an SAE whose trainer failed is tried again, after all others.")
    halving: HalvingConfig | None = Field(None, description="Stop SAEs early that others outdo; absent: none is.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_template(cls, value: Any) -> Any:
        """Of a variant, what is given there comes first, then what is given in the section, then the template's."""
        if not isinstance(value, dict):
            return value
        filled = _filled(value)
        if isinstance(variants := value.get("variants"), list | tuple):
            shared = {field: filled[field] for field in ONE_FOR_ALL if field in filled}
            given = shared | {field: x for field, x in value.items() if field in Grid.model_fields}
            filled["variants"] = [_variant(given, variant) if isinstance(variant, dict) else variant for variant in variants]
        return filled

    @model_validator(mode="after")
    def _one_for_all(self):
        for i, variant in enumerate(self.variants):
            for field in ONE_FOR_ALL:
                if getattr(variant, field) != getattr(self, field):
                    raise ValueError(
                        f"variants[{i}].{field}: {getattr(variant, field)} is not the section's {getattr(self, field)}: the SAEs of a "
                        "stream share its batches, so leave it out of the variant"
                    )
        for grid in self.grids.values():
            for width in grid.widths:
                self._check_parts(grid, width)
        if self.halving:
            self._check_halving(self.halving)
        return self

    def parts(self, width: int) -> int:
        """How many trainers an SAE of so many latents is divided over."""
        return -(-width // self.latents_per_trainer) if self.latents_per_trainer else 1

    @property
    def makes_saes(self) -> bool:
        return not self.variants

    @property
    def grids(self) -> dict[str, Grid]:
        """Those that make the sweep's SAEs, by their place in the sweep file."""
        return {f"train.variants[{i}]": variant for i, variant in enumerate(self.variants)} or {"train": self}

    def _check_parts(self, grid: Grid, width: int) -> None:
        parts = self.parts(width)
        if parts == 1:
            return
        divided = f"latents_per_trainer: an SAE of {width} latents is divided over {parts} trainers"
        if parts > self.at_once:
            raise ValueError(f"{divided}, and at_once is {self.at_once}: raise it, or latents_per_trainer")
        if grid.architecture in UNDIVIDED:
            raise ValueError(f"{divided}, which a {grid.architecture} cannot be: raise latents_per_trainer to {width}, or leave it out")
        if grid.resample_every:
            raise ValueError(f"{divided}, which draw no latents anew: leave resample_every out, or raise latents_per_trainer to {width}")
        if self.gpus % 1:
            raise ValueError(f"{divided}, which cannot share a GPU: gpus ({self.gpus:g}) has to be a whole number")

    def _check_halving(self, halving: HalvingConfig) -> None:
        rungs = halving.steps(self.steps, self.log_every)
        if len(set(rungs)) < len(rungs) or rungs[-1] >= self.steps:
            raise ValueError(
                f"halving: the history has a row every {self.log_every} of the {self.steps} steps, so the rungs would be at the steps "
                f"{', '.join(map(str, rungs))}: lower log_every, or choose other rungs"
            )
        rivals = [(len(grid.sparsities), self.parts(width)) for grid in self.grids.values() for width in grid.widths]
        needed, most = max((n * parts if parts > 1 else -(-n // self.group), n) for n, parts in rivals)
        if self.at_once < needed:
            raise ValueError(
                f"halving: the {most} SAEs of a hook and width are compared while they train, and at_once is "
                f"{self.at_once}: raise it to {needed}"
            )


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """What is given, and the template's fields in place of what is not."""
    name = fields.get("template", "gemma-scope")
    if not isinstance(name, str):
        raise ValueError(f"template {name!r} is not a name")
    try:
        return load_template(name).fields | fields
    except TemplateError as error:
        raise ValueError(str(error)) from error


def _variant(section: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """All fields of a variant. What a user's own template says of the machine is the section's business."""
    about_machine = TrainConfig.model_fields.keys() - Variant.model_fields.keys() - given.keys()
    return {field: value for field, value in _filled(section | given).items() if field not in about_machine}
