"""Answer about sweeps: parents whose children are trainings."""

from fastapi import APIRouter

from scopemill.deploy.studio import parents
from scopemill.deploy.studio.models.sweeps import SweepDetail, SweepSummary
from scopemill.deploy.studio.service import TheStudio
from scopemill.deploy.studio.threads import in_thread

router = APIRouter(tags=["trainings"])  # before the router of trainings: `sweep` is no id


@router.get("/trainings/sweep")
async def list_sweeps(studio: TheStudio) -> list[SweepSummary]:
    """List all sweeps, those at work first."""
    trainings = await studio.watcher.fresh()
    return await in_thread(parents.summaries, trainings)


@router.get("/trainings/sweep/{name}")
async def show_sweep(name: str, studio: TheStudio) -> SweepDetail:
    """Show a sweep with its children, their aggregates and the Pareto frontier."""
    trainings = await studio.watcher.fresh()
    return await in_thread(parents.detail, studio.bucket, trainings, name)
