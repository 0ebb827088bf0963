"""Define what is told of trainings."""

from typing import Any, Literal

from pydantic import BaseModel, Field

State = Literal["pending", "running", "completed", "failed", "stopped"]
Sort = Literal["name", "sweep", "state", "step", "loss", "l0", "fvu", "dead", "delta_loss", "width", "sparsity", "updated"]


class Progress(BaseModel):
    """Describe how far a training is: also the data of the live message ``progress``."""

    step: int
    steps: int
    progress_pct: float
    eta: float | None = Field(description="Seconds that are left at the present speed.")
    loss: float | None = None
    l0: float | None = None
    fvu: float | None = None
    dead: int | None = Field(None, description="Latents that count as dead.")
    lr: float | None = None
    sparsity_factor: float | None = None
    steps_per_second: float | None = None
    tokens: int | None = None


class Quality(BaseModel):
    """Hold what the evaluation of a training's newest measured checkpoint found."""

    step: int
    l0: float | None
    fvu: float | None
    delta_loss: float | None
    recovered_zero: float | None
    recovered_mean: float | None
    dead_fraction: float | None
    decoder_cosine: float | None


class Training(BaseModel):
    """Describe one training: an SAE of a sweep."""

    id: str = Field(description="<sweep>:<name>, with ':' for each '/' of the name.")
    sweep: str
    name: str
    path: str = Field(description="The SAE's folder in the bucket.")
    state: State
    reason: str | None = Field(description="Why it failed or stopped, or what a pending one waits for.")
    model: str
    inputs: list[str]
    targets: list[str] = Field(description="Empty for an SAE that reconstructs its inputs.")
    layer: int | None
    site: str | None
    architecture: str
    width: int | None
    sparsity: float | None
    progress: Progress
    quality: Quality | None
    evidence: bool = Field(description="True if latents can be browsed.")
    updated: float | None = Field(description="When it last changed, in seconds since 1970.")
    asked: list[str] = Field(description="Requests that the driver has not carried out yet: stop, retry, delete, evaluate.")


class TrainingPage(BaseModel):
    """Hold one page of the list of trainings."""

    items: list[Training]
    total: int = Field(description="Trainings that match, on all pages.")
    offset: int
    counts: dict[State, int] = Field(description="Of those that match all filters but the state.")


class TrainingDetail(Training):
    """Describe one training with its hyperparameters."""

    config: dict[str, Any] | None = Field(description="Every hyperparameter, as the SAE's record or the sweep file has it.")
    command: str = Field(description="The command that does the same as the page's main button.")
    tries: int
