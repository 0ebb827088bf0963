"""Define what is told of trainings' curves and checkpoints.

Also of several trainings side by side.
"""

from typing import Any

from pydantic import BaseModel, Field

from scopemill.deploy.studio.models.trainings import Quality, TrainingDetail


class Series(BaseModel):
    """Hold one decimated series: extremes survive."""

    steps: list[int]
    values: list[float | None]


class Metrics(BaseModel):
    """Hold a training's curves."""

    id: str
    step: int = Field(description="The newest row's; give it as `since` to get only what follows.")
    rows: int = Field(description="Rows before decimation.")
    series: dict[str, Series] = Field(description="loss, l0, fvu, dead, lr, sparsity_factor and every other column of the history.")


class Checkpoint(BaseModel):
    """Describe one checkpoint."""

    step: int
    path: str
    resumable: bool = Field(description="True if its optimizer's state is kept.")
    quality: Quality | None


class Checkpoints(BaseModel):
    """Hold a training's checkpoints by step."""

    id: str
    items: list[Checkpoint]


class Comparison(BaseModel):
    """Hold runs side by side."""

    trainings: list[TrainingDetail]
    differing: dict[str, list[Any]] = Field(description="Hyperparameters that differ, with each run's value.")
    metrics: list[Metrics]
