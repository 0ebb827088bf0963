"""Compare trainings: hyperparameters, quality and curves side by side."""

from typing import Annotated

from fastapi import APIRouter, Query

from scopemill.deploy.studio import details
from scopemill.deploy.studio.models.histories import Comparison
from scopemill.deploy.studio.service import TheStudio
from scopemill.deploy.studio.threads import in_thread

router = APIRouter(tags=["trainings"])
MOST = 16


@router.get("/compare")
async def compare(
    studio: TheStudio,
    id: Annotated[list[str], Query(min_length=1, max_length=MOST, description="May be repeated.")],
    points: Annotated[int, Query(ge=2, le=10_000)] = 300,
    series: str = "loss,l0,fvu,dead",
) -> Comparison:
    """Show trainings side by side, and the hyperparameters in which they differ."""
    trainings = await studio.watcher.fresh()
    entries = [trainings.get(one) for one in id]
    names = [name for name in series.split(",") if name]
    return await in_thread(details.comparison, studio.bucket, studio.cache, entries, points, names)
