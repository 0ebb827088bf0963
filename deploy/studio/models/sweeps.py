"""Define what is told of sweeps."""

from typing import Any

from pydantic import BaseModel, Field

from scopemill.deploy.studio.models.trainings import State, Training


class SweepSummary(BaseModel):
    """Describe a parent: a sweep with its trainings."""

    name: str
    state: State
    phase: str | None = Field(description="What its driver does now, in words.")
    phase_pct: float | None
    reason: str | None
    driver: str | None = Field(description="Who drives it: user, host and process.")
    trainings: int
    counts: dict[State, int]
    progress_pct: float
    eta: float | None
    says: list[str] = Field(description="The last lines of the driver's log.")
    report: bool = Field(description="True if there is a report.")
    updated: float | None


class Point(BaseModel):
    """Hold one child in the scatter of L0 against quality."""

    id: str
    name: str
    group: str = Field(description="Hook, architecture and width: children of a group differ in their sparsity.")
    sparsity: float | None
    l0: float | None
    fvu: float | None
    delta_loss: float | None
    measured: bool = Field(description="True if evaluated; else the numbers are of its training.")
    pareto_fvu: bool
    pareto_delta_loss: bool


class Aggregate(BaseModel):
    """Sum up one column over a sweep's children."""

    least: float
    mean: float
    most: float


class SweepDetail(SweepSummary):
    """Describe a parent with its children."""

    children: list[Training]
    points: list[Point]
    aggregates: dict[str, Aggregate]
    config: dict[str, Any] | None
    command: str
