"""Define what is told of latents."""

from typing import Any

from pydantic import BaseModel, Field


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
