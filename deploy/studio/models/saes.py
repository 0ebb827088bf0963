"""Define what is told of finished SAEs, and of a Gemma Scope tree's."""

from pydantic import BaseModel, Field

from scopemill.deploy.studio.models.given import Given
from scopemill.deploy.studio.models.trainings import Quality


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


class ImportRequest(Given):
    """Ask for SAEs of a Gemma Scope tree."""

    source: str = Field(description="Such as hf://google/gemma-scope-2b-pt-res, a copy of it, any fsspec URL.")
    match: str = Field("*", description="Of layer_<l>/width_<w>/average_l0_<n>.")
