"""Describe what to train: a sweep's ``train`` section, a grid of SAEs."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from scopemill.proto.config import Config, NodeLabels
from scopemill.proto.errors import TemplateError
from scopemill.trainer.config.effects import switched_off
from scopemill.trainer.config.finetuning import FinetuneConfig
from scopemill.trainer.config.recipe import UNDIVIDED, Recipe, SaeConfig, kind_of, only_read, readers, sae_config
from scopemill.trainer.config.templates import load_template

MonitorName = Literal["jsonl", "tensorboard", "wandb"]
ONE_FOR_ALL = ("tokens", "batch_size", "log_every")  # SAEs of a stream share batches, and rivals are compared at the same steps


class HalvingConfig(Config):
    """Describe successive halving, which stops some rivals early.

    Rivals are SAEs that differ only in sparsity. A rival is stopped if others are better in both L0 and FVU.
    """

    rungs: tuple[float, ...] = Field(
        (0.25, 0.5),
        strict=False,
        min_length=1,
        description="Shares of the steps after which rivals are compared.",
    )
    keep: float = Field(0.5, gt=0, lt=1, description="Smallest share of the rivals that continues after each rung.")

    @model_validator(mode="after")
    def _rising(self):
        if list(self.rungs) != sorted(set(self.rungs)) or not 0 < self.rungs[0] <= self.rungs[-1] < 1:
            raise ValueError("rungs: must be shares of the steps that rise between 0 and 1, such as [0.25, 0.5]")
        return self

    def steps(self, steps: int, log_every: int) -> tuple[int, ...]:
        """Return the step of each rung.

        This is the step of the first row of the history at or after the rung's share of the steps.
        """
        return tuple(math.ceil(rung * steps / log_every - 1e-9) * log_every for rung in self.rungs)


class Grid(Recipe):
    """Combine one recipe with every width and every sparsity.

    Every field of the recipe has a value here; ``saes`` drops the fields that the recipe's kind of SAE does not read.
    """

    template: str = Field("gemma-scope", description="Template that fills every field that is not given; see `scopemill templates`.")
    # Not strict about the sequence's type: the filled fields are Python's, where a YAML list is a list.
    widths: tuple[int, ...] = Field(strict=False, description="Numbers of latents.")
    sparsities: tuple[float, ...] = Field(
        strict=False,
        description="How sparse the SAEs are: lambda; for topk and batchtopk k, or below 1 a share of the width; for target_l0 L0*.",
    )

    @model_validator(mode="after")
    def _sensible(self):
        for field in ("widths", "sparsities"):
            values = getattr(self, field)
            if not values and self.makes_saes:
                raise ValueError(f"{field} has to hold at least one value")
            if len(set(values)) != len(values):
                raise ValueError(f"{field} holds a value twice")
        if min(self.widths, default=1) < 1 or min(self.sparsities, default=0) < 0:
            raise ValueError("widths must be at least 1, and sparsities not negative")
        try:
            self.saes()  # every pair has to fit
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @model_serializer(mode="wrap")
    def _without_unread(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return what a sweep file has to say, and no field that would be refused there."""
        dropped = (Recipe.model_fields.keys() - self._told) | self._unspoken
        return {name: value for name, value in serialize(self).items() if name not in dropped}

    @property
    def _told(self) -> set[str]:
        """Return the recipe's fields that a dump names."""
        return kind_of(self.filled).reads

    @property
    def _unspoken(self) -> set[str]:
        """Return the recipe's fields that its other fields leave without effect."""
        return set(switched_off(self.filled))

    @property
    def makes_saes(self) -> bool:
        """Return whether SAEs are trained by this recipe itself, and not only by its variants."""
        return True

    @property
    def filled(self) -> dict[str, Any]:
        """Return every field of the recipe, read or not."""
        return {name: getattr(self, name) for name in Recipe.model_fields}

    def saes(self) -> list[SaeConfig]:
        """Return one configuration per width and sparsity."""
        if not self.makes_saes:
            return []
        return [sae_config(self.filled | {"width": w, "sparsity": s}) for w in self.widths for s in self.sparsities]


class Variant(Grid):
    """Describe one of several recipes of a sweep: the ``train`` section with some fields replaced."""

    layers: tuple[int, ...] | None = Field(
        None, strict=False, min_length=1, description="The harvested layers that this variant is for; absent: all of them."
    )
    sites: tuple[str, ...] | None = Field(
        None, strict=False, min_length=1, description="The harvested sites that this variant is for; absent: all of them."
    )


class TrainConfig(Grid):
    """Describe a sweep's ``train`` section: one grid of SAEs, or several variants."""

    widths: tuple[int, ...] = Field((), strict=False, description="Numbers of latents; required here or in each variant.")
    sparsities: tuple[float, ...] = Field(
        (),
        strict=False,
        description="How sparse the SAEs are: lambda; for topk and batchtopk k, or below 1 a share of the width; for target_l0 L0*. "
        "Required here or in each variant.",
    )
    variants: tuple[Variant, ...] = Field(
        (),
        strict=False,
        description="Several recipes: a list of mappings with fields that replace the section's own; absent: only the section.",
    )
    at_once: int = Field(16, ge=1, description="Number of trainers that run at the same time.")
    group: int = Field(
        1, ge=1, description="Largest number of SAEs of one stream that a trainer trains together, from one copy of each batch."
    )
    latents_per_trainer: int | None = Field(
        None,
        ge=1,
        description="An SAE with more latents is sharded over several trainers, in shards of nearly equal size; absent: no SAE is sharded.",
    )
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves per trainer; also the number of its threads, at least one.")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves per trainer; with a fraction, trainers share a GPU.")
    labels: NodeLabels = Field({}, description="Labels of the Ray nodes that trainers run on; absent: any node.")
    monitors: tuple[MonitorName, ...] = Field(
        ("jsonl",),
        strict=False,
        description="Where each SAE's history goes while it trains: jsonl (JSON lines in the SAE's folder), tensorboard, wandb.",
    )
    priority: dict[str, int] = Field(
        {},
        description="Which SAEs train first: a mapping from patterns of SAE names, such as '*resid_post*', to numbers; larger numbers "
        "come first, and other SAEs have 0.",
    )
    retries: int = Field(1, ge=0, description="How often an SAE is retried, after all others, when its trainer failed.")
    halving: HalvingConfig | None = Field(
        None, description="Stop an SAE early if rivals are better in both L0 and FVU; absent: every SAE is trained to its last step."
    )
    finetune: FinetuneConfig | None = Field(None, description="What happens to each finished SAE after its training; absent: nothing.")
    _given: frozenset[str] = PrivateAttr(frozenset())  # the recipe's fields that the section of variants gives

    @model_validator(mode="wrap")
    @classmethod
    def _fill_from_template(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Fill each variant with its own fields first, then the section's, then the template's."""
        if not isinstance(value, dict):
            return validate(value)
        filled = _filled(value)
        variants = value.get("variants")
        if not variants or not isinstance(variants, list | tuple):
            _check_read(value, [filled])
            return validate(filled)
        shared = {field: filled[field] for field in ONE_FOR_ALL if field in filled}
        section = {field: x for field, x in value.items() if field in Grid.model_fields}
        filled["variants"] = [_variant(shared | section, one) if isinstance(one, dict) else one for one in variants]
        recipes = [one for one in filled["variants"] if isinstance(one, dict)]
        for i, one in enumerate(variants):
            if isinstance(one, dict):
                _check_read(one, [filled["variants"][i]], f"variants[{i}].")
        _check_read(section, recipes)
        config = validate(filled)
        config._given = frozenset(section.keys() & Recipe.model_fields.keys())
        return config

    @model_validator(mode="after")
    def _one_for_all(self):
        for i, variant in enumerate(self.variants):
            for field in ONE_FOR_ALL:
                if getattr(variant, field) != getattr(self, field):
                    raise ValueError(
                        f"variants[{i}].{field}: {getattr(variant, field)} is not the section's {getattr(self, field)}: the SAEs of a "
                        f"stream share its batches, so leave {field} out of the variant"
                    )
        for grid in self.grids.values():
            for width in grid.widths:
                self._check_parts(grid, width)
        if self.halving:
            self._check_halving(self.halving)
        return self

    def parts(self, width: int) -> int:
        """Return the number of trainers that an SAE of this width is sharded over."""
        return -(-width // self.latents_per_trainer) if self.latents_per_trainer else 1

    @property
    def _told(self) -> set[str]:
        return set(self._given) if self.variants else super()._told

    @property
    def _unspoken(self) -> set[str]:
        return set() if self.variants else super()._unspoken

    @property
    def makes_saes(self) -> bool:
        """Return whether the section itself is the sweep's only recipe."""
        return not self.variants

    @property
    def grids(self) -> dict[str, Grid]:
        """Return the recipes that make the sweep's SAEs, by their place in the sweep file."""
        return {f"train.variants[{i}]": variant for i, variant in enumerate(self.variants)} or {"train": self}

    def _check_parts(self, grid: Grid, width: int) -> None:
        parts = self.parts(width)
        if parts == 1:
            return
        sharded = f"latents_per_trainer: an SAE of {width} latents is sharded over {parts} trainers"
        if parts > self.at_once:
            raise ValueError(f"{sharded}, and at_once is {self.at_once}: raise at_once or latents_per_trainer")
        if grid.architecture in UNDIVIDED:
            raise ValueError(
                f"{sharded}, and a {grid.architecture} cannot be sharded: raise latents_per_trainer to {width}, or leave it out"
            )
        if only_read(grid.filled).get("resample_every"):
            raise ValueError(
                f"{sharded}, and a sharded SAE is not resampled: leave resample_every out, or raise latents_per_trainer to {width}"
            )
        if self.gpus % 1:
            raise ValueError(f"{sharded}, and its trainers cannot share a GPU: gpus ({self.gpus:g}) has to be a whole number")

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
                f"{self.at_once}: raise at_once to {needed}"
            )


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """Add the template's fields to the given ones."""
    name = fields.get("template", "gemma-scope")
    if not isinstance(name, str):
        raise ValueError(f"template: {name!r} is not the name of a template")
    try:
        return load_template(name).fields | fields
    except TemplateError as error:
        raise ValueError(str(error)) from error


def _variant(section: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """All fields of a variant, without what a user's own template says of the machine: that is for the section."""
    about_machine = TrainConfig.model_fields.keys() - Variant.model_fields.keys() - given.keys()
    return {field: value for field, value in _filled(section | given).items() if field not in about_machine}


def _check_read(given: Mapping[str, Any], recipes: Iterable[Mapping[str, Any]], place: str = "") -> None:
    """ValueError if a given field of the recipe changes nothing in any of the filled recipes."""
    recipes = list(recipes)
    kinds = list(dict.fromkeys(kind_of(recipe) for recipe in recipes))
    read = set().union(*(kind.reads for kind in kinds))
    unread = [field for field in given if field in Recipe.model_fields and given[field] is not None and field not in read]
    if kinds and unread:
        raise ValueError(
            "; ".join(
                f"{place}{field} ({given[field]!r}) has no effect: it is read by {readers(field)}, and not by a "
                f"{' or a '.join(map(str, kinds))}; leave {field} out, or change architecture, activation or penalty"
                for field in unread
            )
        )
    for field, value in given.items():
        reasons = [switched_off(recipe).get(field) for recipe in recipes if field in kind_of(recipe).reads]
        if value is not None and reasons and all(reasons):
            raise ValueError(f"{place}{field} ({value!r}) has no effect: {reasons[0]}; leave {field} out")
