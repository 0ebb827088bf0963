"""Describe how one SAE is trained, with only the fields that its kind reads."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from pydantic import Field, create_model, model_validator

from scopemill.proto.config import Config
from scopemill.trainer.config import fields
from scopemill.trainer.config.fields import (
    LAYERED,
    OWN_ACTIVATION,
    PAIRED,
    UNDIVIDED,
    ActivationName,
    ArchitectureName,
    PenaltyName,
    latents_of,
)

__all__ = ["LAYERED", "OWN_ACTIVATION", "PAIRED", "UNDIVIDED", "Kind", "Recipe", "SaeConfig", "kind_of", "kinds", "only_read", "readers",
           "sae_config"]  # fmt: skip

BY_LATENTS: dict[str, tuple[type[Config], ...]] = {
    "relu": (fields.SparsityWarmup,),
    "gated": (fields.SparsityWarmup,),
    "jumprelu": (fields.JumpReLU, fields.SparsityWarmup),
    "topk": (fields.AuxK, fields.NoSparsityPenalty),
    "batchtopk": (fields.AuxK, fields.NoSparsityPenalty),
}
BY_PENALTY: dict[str, tuple[type[Config], ...]] = {
    "l0": (fields.FrequencyTerm,),
    "target_l0": (fields.TargetL0, fields.FrequencyTerm),
    "tanh": (fields.Tanh,),
}
BY_ARCHITECTURE: dict[str, tuple[type[Config], ...]] = {
    "matryoshka": (fields.Matryoshka,),
    "skip": (fields.Skip,),
    **dict.fromkeys(PAIRED, (fields.Sites,)),
}


class Kind(NamedTuple):
    """Name what decides which fields an SAE reads."""

    architecture: str
    latents: str
    penalty: str | None  # of JumpReLU latents

    def __str__(self) -> str:
        details = [f"{self.latents} latents"] if self.architecture not in OWN_ACTIVATION else []
        details += [f"penalty {self.penalty}"] if self.penalty else []
        return f"{self.architecture} SAE" + (f" with {' and '.join(details)}" if details else "")

    @property
    def parts(self) -> tuple[type[Config], ...]:
        """Return the classes whose fields, with those of every SAE, this kind reads."""
        resampled = self.latents in ("relu", "jumprelu") and self.architecture not in PAIRED + LAYERED
        return (
            fields.Resampling if resampled else fields.NoResampling,
            *BY_ARCHITECTURE.get(self.architecture, ()),
            fields.MeanDecoderBias if self.architecture == "skip_transcoder" else fields.DecoderBias,
            *(BY_PENALTY.get(self.penalty, ()) if self.penalty else ()),
            *BY_LATENTS.get(self.latents, ()),
            fields.Untied if self.architecture in PAIRED else fields.Tied,
            fields.Adam,
        )

    @property
    def reads(self) -> set[str]:
        """Return the names of the fields that this kind reads."""
        every: tuple[type[Config], ...] = (*self.parts, fields.EverySae)
        return {name for part in every for name in part.model_fields}


class Recipe(
    fields.Resampling, fields.Skip, fields.Matryoshka, fields.DecoderBias, fields.AuxK, fields.Tanh, fields.TargetL0, fields.FrequencyTerm,
    fields.JumpReLU, fields.SparsityWarmup, fields.Tied, fields.Adam, fields.Sites, fields.EverySae,
):  # fmt: skip
    """Hold every recipe field: what a sweep file or a template may give."""


if TYPE_CHECKING:
    _Fields = Recipe  # which fields an SAE has is known only at run time, so a type checker sees all of them
else:
    _Fields = fields.EverySae


class SaeConfig(_Fields):
    """Hold everything that decides one SAE's weights, given its stream.

    ``sae_config`` makes the configuration of the right kind, a subclass with the fields that this kind reads.
    """

    width: int = Field(ge=1, description="Number of latents; for clt and per_layer_transcoder the number in each layer.")
    sparsity: float = Field(
        ge=0, description="How sparse the SAE is: lambda; for topk and batchtopk k, or below 1 a share of the width; for target_l0 L0*."
    )

    def __reduce__(self):
        return sae_config, (self.model_dump(),)  # the class of a kind is made when needed, so it cannot be imported by name

    @model_validator(mode="after")
    def _fits_together(self):
        kind = self.architecture
        if self.tokens < self.batch_size:
            raise ValueError(f"tokens ({self.tokens}) is less than one batch (batch_size = {self.batch_size})")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size ({self.batch_size}) cannot be cut into accumulate = {self.accumulate} equal parts")
        if self.counts_latents and self.batch_size == self.accumulate:
            raise ValueError(
                f"batch_size ({self.batch_size}): {self.latents} divides errors by the variance over the rows of a part, so each of the "
                f"accumulate = {self.accumulate} parts needs at least 2 rows"
            )
        own = OWN_ACTIVATION.get(kind)
        if own and self.activation not in (None, own):
            raise ValueError(f"activation: {kind} has its own ({own}), not {self.activation}: leave activation out")
        if self.activation == "gated" and kind in PAIRED + LAYERED:
            raise ValueError(f"activation: {kind} is not trained with gated latents; take relu, jumprelu, topk or batchtopk")
        if self.normalization == "layer_norm" and kind in PAIRED + LAYERED:
            raise ValueError(f"normalization: layer_norm is for SAEs of one hook, not for a {kind}; take scale")
        if self.initial_decoder_bias == "mean" and self.normalization == "layer_norm":
            raise ValueError("initial_decoder_bias: the mean of rows under layer_norm is not known before training; take zero")
        if self.tied_weights and self.initial_sae:
            raise ValueError(
                f"tied_weights: the encoder of {self.initial_sae} need not be its decoder; leave out tied_weights or initial_sae"
            )
        if kind in PAIRED and self.input_site == self.target_site:
            raise ValueError(f"target_site: a {kind} reconstructs another site than the one it reads, and both are {self.target_site}")
        return self

    @model_validator(mode="after")
    def _sparse_enough(self):
        if self.counts_latents:
            k = self.sparsity * self.width if self.sparsity < 1 else self.sparsity
            if k < 1 or k > self.width or (self.sparsity >= 1 and k != int(k)):
                raise ValueError(
                    f"sparsity ({self.sparsity:g}) is k here: a whole number from 1 to the width ({self.width}), or a share of the width"
                )
        elif self._targets_l0 and not 0 < self.sparsity <= self.width:
            raise ValueError(f"sparsity ({self.sparsity:g}) is the wanted L0 here: above 0, at most the width ({self.width})")
        return self

    @property
    def k(self) -> int:
        """Return the number of latents per row that a topk kind keeps."""
        return max(1, round(self.sparsity * self.width)) if self.sparsity < 1 else int(self.sparsity)

    @property
    def coefficient(self) -> float:
        """Return the coefficient of the sparsity penalty after the warm-up."""
        if self.counts_latents:
            return 0.0
        return self.target_coefficient if self._targets_l0 else self.sparsity

    @property
    def _targets_l0(self) -> bool:
        return self.latents == "jumprelu" and self.penalty == "target_l0"


def sae_config(given: Mapping[str, Any]) -> SaeConfig:
    """Return one SAE's configuration, without recipe fields that its kind does not read."""
    given = dict(given)
    return _class_of(kind_of(given)).model_validate(only_read(given))


def kind_of(given: Mapping[str, Any]) -> Kind:
    """Return the kind of SAE that the given fields, or the defaults, name."""
    words = {name: value for name in ("architecture", "activation", "penalty") if isinstance(value := given.get(name), str)}
    architecture = words.get("architecture", "jumprelu")
    latents = latents_of(architecture, words.get("activation"))
    return Kind(architecture, latents, words.get("penalty", "l0") if latents == "jumprelu" else None)


def only_read(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given fields without the recipe fields that their kind does not read."""
    unread = Recipe.model_fields.keys() - kind_of(given).reads
    return {name: value for name, value in given.items() if name not in unread}


def kinds() -> list[Kind]:
    """Return every kind of SAE that can be trained."""
    return [
        Kind(architecture, latents, penalty)
        for architecture in get_args(ArchitectureName)
        for latents in get_args(ActivationName)
        if OWN_ACTIVATION.get(architecture, latents) == latents and not (latents == "gated" and architecture in PAIRED + LAYERED)
        for penalty in (get_args(PenaltyName) if latents == "jumprelu" else (None,))
    ]


def readers(field: str) -> str:
    """Return which SAEs read a field, in words.

    For example "matryoshka", or "SAEs with jumprelu latents and penalty tanh".
    """
    reading = [kind for kind in kinds() if field in kind.reads]
    architectures, latents, penalties = ({kind[i] for kind in reading} for i in range(3))
    silent = set(get_args(ArchitectureName)) - architectures
    possible = [kind for kind in kinds() if kind.architecture in architectures]
    if len(silent) <= 1:
        words = "every architecture" + (f" but {silent.pop()}" if silent else "")
    elif architectures == {kind.architecture for kind in kinds() if kind.latents in latents}:
        words, possible = "SAEs", kinds()
    else:
        words = _listed(architectures, ArchitectureName, "and")
    if latents != {kind.latents for kind in possible}:
        words += f" with {_listed(latents, ActivationName, 'or')} latents"
    if penalties != {kind.penalty for kind in possible if kind.latents in latents}:
        words += f" and penalty {_listed(penalties, PenaltyName, 'or')}"
    return words


def _listed(names: Iterable[Any], of: Any, last: str) -> str:
    *some, one = (name for name in get_args(of) if name in names)
    return f"{', '.join(some)} {last} {one}" if some else one


@cache
def _class_of(kind: Kind) -> type[SaeConfig]:
    bases: tuple[Any, ...] = (*kind.parts, SaeConfig)
    return create_model("SaeConfig", __base__=bases)
