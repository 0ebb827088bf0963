"""Define what the REST interface takes and gives.

Its OpenAPI page is made from these models.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["pending", "running", "completed", "failed", "stopped"]
Sort = Literal["name", "sweep", "state", "step", "loss", "l0", "fvu", "dead", "delta_loss", "width", "sparsity", "updated"]


class _Given(BaseModel):
    """Refuse unknown fields of a request."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Describe an error, as RFC 9457 says (``application/problem+json``)."""

    type: str = Field(description="urn:scopemill:problem:<kind>, one of our errors' names in small letters.")
    title: str
    status: int
    detail: str = Field(description="The sentence that the command line prints.")
    instance: str | None = None


class Session(_Given):
    """Hold the token that is exchanged for a cookie."""

    token: str


class About(BaseModel):
    """Describe the service, so that the page knows what it can offer."""

    version: str
    bucket: str
    read_only: bool
    address: str | None = Field(description="The Ray cluster that sweeps are submitted to; null: a local process drives them.")
    reachable: bool = Field(description="False while the bucket does not answer; what is shown is then of `read_at`.")
    problem: str | None = Field(description="Why the bucket does not answer.")
    read_at: float | None = Field(description="When the bucket was last read, in seconds since 1970.")


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


class StartTraining(_Given):
    """Ask for one or more SAEs by a sweep file's content."""

    config: dict[str, Any] = Field(description="A sweep file's mapping; `bucket` may be left out.")
    template: str | None = Field(None, description="The training template that it started from, to count its use.")


class StartSweep(_Given):
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


class Estimate(BaseModel):
    """Tell what a sweep would take, before it is started."""

    sweep: str
    trainings: int
    facts: dict[str, str] = Field(description="What `scopemill plan` prints, by name.")
    stages: list["StageEstimate"]
    memory: list["MemoryEstimate"]
    hours: float
    price: float = Field(description="US dollars.")
    kept_bytes: float
    hardware: str
    command: str


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


class Ids(_Given):
    """Name trainings for a bulk action."""

    ids: list[str] = Field(min_length=1, max_length=10_000)


class EvaluateRequest(_Given):
    """Ask for metrics by name."""

    metrics: list[str] = Field([], description="Columns of the results, or `probes`; empty: all that the sweep file asks for.")


class Evaluated(BaseModel):
    """Give the metrics that are there.

    For the others, tell what was asked of the driver.
    """

    id: str
    step: int | None
    cached: bool = Field(description="True if every metric was there already.")
    metrics: dict[str, Any]
    request: "Asked | None" = Field(description="What the driver was asked, if metrics are missing.")


class Asked(BaseModel):
    """Tell what became of a request to the driver."""

    request: str | None = Field(description="Its id in sweeps/<name>/requests/; null if it was carried out at once.")
    action: str
    trainings: list[str]
    driver: str = Field(description="Who carries it out, in words.")


class AskedAll(BaseModel):
    """Tell what became of a bulk request, a line for each sweep."""

    asked: list[Asked]
    missing: list[str] = Field(description="Ids that name no training.")


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


class Template(BaseModel):
    """Describe a training template."""

    name: str
    description: str
    config: dict[str, Any] = Field(description="Part of a sweep file's mapping, such as {'train': {...}}.")
    favourite: bool
    uses: int
    own: bool = Field(description="False for those that the package carries, which cannot be changed.")
    created: float | None
    changed: float | None


class TemplateFields(_Given):
    """Give a template's content."""

    description: str = ""
    config: dict[str, Any]
    favourite: bool = False


class NewTemplate(TemplateFields):
    """Give a new template's name and content."""

    name: str


class TemplateChange(_Given):
    """Give those fields of a template that change."""

    description: str | None = None
    config: dict[str, Any] | None = None
    favourite: bool | None = None


class NewName(_Given):
    """Name a copy."""

    name: str


class TemplateExport(_Given):
    """Hold templates as they are exported and imported."""

    format: Literal[1] = 1
    templates: list[NewTemplate]


class SaeEntry(BaseModel):
    """Describe one finished SAE of the bucket."""

    path: str
    model: str
    hook: str
    layer: int | None
    architecture: str
    width: int | None
    quality: Quality | None
    evidence: bool
    imported_from: str | None
    training: str | None = Field(description="The id of its training, if a sweep of this bucket has it.")


class SaePage(BaseModel):
    """Hold one page of the bucket's finished SAEs."""

    items: list[SaeEntry]
    total: int
    offset: int


class GemmaScopeEntry(BaseModel):
    """Describe one SAE of a Gemma Scope tree."""

    path: str = Field(description="Below the tree, such as layer_20/width_16k/average_l0_71.")
    model: str
    site: str
    layer: int | None
    width: str
    l0: float | None


class GemmaScopePage(BaseModel):
    """Hold the SAEs of a Gemma Scope tree that match."""

    source: str
    items: list[GemmaScopeEntry]
    total: int


class ImportRequest(_Given):
    """Ask for SAEs of a Gemma Scope tree."""

    source: str = Field(description="Such as hf://google/gemma-scope-2b-pt-res, a copy of it, any fsspec URL.")
    match: str = Field("*", description="Of layer_<l>/width_<w>/average_l0_<n>.")


class Job(BaseModel):
    """Describe work that the service itself does: an import, or a steering."""

    id: str
    kind: Literal["import", "steer"]
    state: Literal["running", "completed", "failed"]
    done: int
    total: int | None
    reason: str | None
    result: dict[str, Any] | None
    command: str


class LatentPage(BaseModel):
    """Hold one page of an SAE's latents."""

    sae: str
    items: list[dict[str, Any]] = Field(description="latent, density, max, mean, std, cluster, top_token, promoted, label, ...")
    total: int
    offset: int


class SearchHits(BaseModel):
    """Hold the latents that were found."""

    sae: str
    text: str
    words: bool
    items: list[dict[str, Any]]


class Label(BaseModel):
    """Hold a latent's label."""

    latent: int
    label: str
    score: float | None


class Labels(BaseModel):
    """Hold all labels of an SAE."""

    sae: str
    items: list[Label]


class SteerRequest(_Given):
    """Ask for a steered continuation; docs/steering.md says what an edit holds."""

    prompt: str
    configurations: dict[str, list[dict[str, Any]]] = Field(description="Edits by configuration; `sae` is a path in the bucket.")
    model: str | None = Field(None, description="Absent: the model that the first SAE names.")
    sampling: dict[str, Any] = {}
    samples: int = Field(1, ge=1, le=16)
    text: str | None = None
    doses: bool = False


class Comparison(BaseModel):
    """Hold runs side by side."""

    trainings: list[TrainingDetail]
    differing: dict[str, list[Any]] = Field(description="Hyperparameters that differ, with each run's value.")
    metrics: list[Metrics]
