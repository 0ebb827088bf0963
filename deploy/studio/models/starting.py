"""Define what is given and told when trainings are started."""

from typing import Any

from pydantic import BaseModel, Field

from scopemill.deploy.studio.models.given import Given


class StartTraining(Given):
    """Ask for one or more SAEs by a sweep file's content."""

    config: dict[str, Any] = Field(description="A sweep file's mapping; `bucket` may be left out.")
    template: str | None = Field(None, description="The training template that it started from, to count its use.")


class StartSweep(Given):
    """Ask for a parent with children that differ in their sparsity."""

    config: dict[str, Any] = Field(description="A sweep file's mapping; `bucket` and `train.sparsities` may be left out.")
    sparsities: list[float] = Field(min_length=1)
    template: str | None = None


class Started(BaseModel):
    """Tell what was started."""

    sweep: str
    trainings: list[str] = Field(description="The ids.")
    driver: str = Field(description="Who carries it out, in words.")
    command: str = Field(description="The command that does the same.")


class StageEstimate(BaseModel):
    """Estimate one stage."""

    name: str
    tokens: int
    flops: float
    kept_bytes: float
    hours: float
    price: float


class MemoryEstimate(BaseModel):
    """Estimate the peak memory of one kind of process."""

    process: str
    bytes: float
    parts: dict[str, float]


class Estimate(BaseModel):
    """Tell what a sweep would take, before it is started."""

    sweep: str
    trainings: int
    facts: dict[str, str] = Field(description="What `scopemill plan` prints, by name.")
    stages: list[StageEstimate]
    memory: list[MemoryEstimate]
    hours: float
    price: float = Field(description="US dollars.")
    kept_bytes: float
    hardware: str
    command: str


class EstimateRequest(StartTraining):
    """Ask what a sweep would take on some hardware."""

    hardware: str = Field("h100", description="l4, l40s, a100, h100 or h200.")
    price: float | None = Field(None, description="US dollars an hour.")
    utilisation: float | None = Field(None, description="The share of its peak that is reached, from 0 to 1.")


class Validation(BaseModel):
    """Tell whether a sweep file's content is valid, field by field."""

    valid: bool
    problems: list[str] = Field(description="A sentence for each wrong field, as the command line prints them.")
    yaml: str | None = Field(description="The sweep file as it would be written, if it is valid.")
