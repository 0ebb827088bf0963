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
    width: str = Field(description="As the path has it: 16k.")
    l0: float | None = Field(description="Null where the path has a word for it.")
    folder: str = Field(description="Its whole address: `imported_from` of an SAE that came from it.")


class GemmaScopeChoices(BaseModel):
    """Tell by what a tree's SAEs can be chosen."""

    models: list[str]
    sites: list[str]
    layers: list[int]
    widths: list[str]


class GemmaScopePage(BaseModel):
    """Hold one page of the SAEs of a Gemma Scope tree that match."""

    source: str
    items: list[GemmaScopeEntry]
    total: int = Field(description="SAEs that match, on all pages.")
    offset: int
    choices: GemmaScopeChoices = Field(description="Of the whole tree.")
    imported: list[str] = Field(description="Folders of this page's SAEs that are in the bucket already.")


class ImportRequest(Given):
    """Ask for SAEs of a Gemma Scope tree."""

    source: str = Field(description="Such as hf://google/gemma-scope-2b-pt-res, a copy of it, any fsspec URL.")
    match: str = Field("*", description="Of layer_<l>/width_<w>/average_l0_<n>.")
