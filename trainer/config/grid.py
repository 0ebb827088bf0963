"""What to train: the fields of a sweep's ``train`` section, a grid of SAEs. Templates fill them, see ``templates.py``."""

import math
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from scopemill.proto.config import Config, NodeLabels
from scopemill.proto.errors import TemplateError
from scopemill.trainer.config.recipe import UNDIVIDED, Recipe, SaeConfig
from scopemill.trainer.config.templates import load_template

MonitorName = Literal["jsonl", "tensorboard", "wandb"]
ONE_FOR_ALL = ("tokens", "batch_size", "log_every")  # of a sweep's recipes: SAEs of a stream share batches, rivals are compared by step


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
    monitors: tuple[MonitorName, ...] = Field(
        ("jsonl",),
        strict=False,
        description="Where each SAE's history goes while it trains: jsonl (JSON lines in the SAE's folder), tensorboard, wandb.",
    )
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
