"""Describe edits: what steering does to latents, where and when."""

import math
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from scopemill.proto.config import Config, Place

Op = Literal["add", "scale", "clamp", "ablate"]
Where = Literal["all", "prompt", "generated"]


class Condition(Config):
    """Describe when an edit acts: where another latent fires."""

    latent: int = Field(ge=0, description="The latent to look at.")
    above: float = Field(0.0, description="The raw activation that the latent has to exceed.")


class Edit(Config):
    """Describe one edit of one latent."""

    sae: Place = Field(min_length=1, description="Folder of a finished SAE in any readable format: a path or fsspec URL.")
    latent: int = Field(ge=0, description="The latent to edit.")
    op: Op = Field("add", description="add: f + amount; scale: amount * f; clamp: amount; ablate: 0.")
    amount: float | None = Field(None, description="How much; ablate takes none.")
    unit: Literal["maximum", "raw"] = Field(
        "maximum", description="The unit of add's and clamp's amount: the latent's largest activation, or the raw activation."
    )
    where: Where = Field("all", description="all: every token; prompt: the prompt's tokens; generated: those that follow.")
    when: Condition | None = Field(None, description="Act only where another latent fires. Default: everywhere.")

    @model_validator(mode="after")
    def _amount_fits(self) -> Self:
        if self.op == "ablate":
            if self.amount is not None:
                raise ValueError(f"ablate sets the latent to 0 and takes no amount (it is {self.amount:g})")
        elif self.amount is None or not math.isfinite(self.amount):
            raise ValueError(f"{self.op} needs an amount that is a finite number, not {self.amount}")
        return self

    @property
    def needs_latents(self) -> bool:
        """Return whether the edit depends on what the SAE reads."""
        return self.op != "add" or self.when is not None

    @property
    def in_maxima(self) -> bool:
        """Return whether the amount counts in the latent's largest activation."""
        return self.unit == "maximum" and self.op in ("add", "clamp")

    def scaled(self, maximum: float) -> "Edit":
        """Return the same edit with its amount in raw activations."""
        if not self.in_maxima or self.amount is None:
            return self
        return self.model_copy(update={"amount": self.amount * maximum, "unit": "raw"})

    def times(self, dose: float) -> "Edit":
        """Return the edit at another dose: a multiple of its amount."""
        return self if self.amount is None else self.model_copy(update={"amount": self.amount * dose})

    def __str__(self) -> str:
        """Return the edit as a person would say it."""
        amount = "" if self.amount is None else f" {self.amount:g}{' x max' if self.in_maxima else ''}"
        return f"{self.op}{amount} at latent {self.latent}"


class EditFile(Config):
    """Hold the content of a file of edits."""

    edits: tuple[Edit, ...] = Field(strict=False, min_length=1, description="The edits, applied in this order.")


def latents_of(edits: Sequence[Edit], sae: str) -> list[int]:
    """Return the latents that edits of one SAE change or look at, each once."""
    own = [edit for edit in edits if edit.sae == sae]
    return sorted({edit.latent for edit in own} | {edit.when.latent for edit in own if edit.when})
