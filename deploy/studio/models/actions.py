"""Define what is asked of trainings, and what became of it."""

from typing import Any

from pydantic import BaseModel, Field

from scopemill.deploy.studio.models.given import Given


class Ids(Given):
    """Name trainings for a bulk action."""

    ids: list[str] = Field(min_length=1, max_length=10_000)


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


class EvaluateRequest(Given):
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
    request: Asked | None = Field(description="What the driver was asked, if metrics are missing.")
