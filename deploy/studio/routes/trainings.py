"""Answer about trainings."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from scopemill.deploy.studio import details
from scopemill.deploy.studio.models.histories import Checkpoints, Metrics
from scopemill.deploy.studio.models.trainings import Sort, State, Training, TrainingDetail, TrainingPage
from scopemill.deploy.studio.service import TheStudio
from scopemill.deploy.studio.threads import in_thread
from scopemill.deploy.studio.trainings import counts_of

router = APIRouter(tags=["trainings"])


@router.get("/trainings")
async def list_trainings(
    studio: TheStudio,
    state: Annotated[list[State] | None, Query(description="May be repeated.")] = None,
    sweep: str | None = None,
    text: Annotated[str | None, Query(description="A part of the name, the sweep or the model; case does not count.")] = None,
    model: str | None = None,
    architecture: str | None = None,
    sort: Sort = "sweep",
    order: Literal["ascending", "descending"] = "ascending",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=2000)] = 100,
) -> TrainingPage:
    """List trainings, filtered, sorted and in pages."""
    trainings = await studio.watcher.fresh()
    wanted = (text or "").casefold()
    found = [
        one
        for entry in trainings.by_id.values()
        if (one := entry.training)
        and (sweep is None or one.sweep == sweep)
        and (model is None or one.model == model)
        and (architecture is None or one.architecture == architecture)
        and (not wanted or any(wanted in part.casefold() for part in (one.name, one.sweep, one.model, one.path)))
    ]
    chosen = _sorted([one for one in found if not state or one.state in state], sort, order == "descending")
    return TrainingPage.model_construct(items=chosen[offset : offset + limit], total=len(chosen), offset=offset, counts=counts_of(found))


@router.get("/trainings/{id}")
async def show_training(id: str, studio: TheStudio) -> TrainingDetail:
    """Show one training with its hyperparameters."""
    entry = (await studio.watcher.fresh()).get(id)
    return await in_thread(details.detail, studio.bucket, studio.cache, entry)


@router.get("/trainings/{id}/metrics")
async def show_metrics(
    id: str,
    studio: TheStudio,
    points: Annotated[int, Query(ge=2, le=10_000, description="The most points of each curve.")] = 400,
    series: Annotated[str, Query(description="Comma-separated, such as loss,l0,fvu,dead; absent: every column.")] = "",
    since: Annotated[int, Query(ge=0, description="Only rows after this step.")] = 0,
) -> Metrics:
    """Give a training's curves, decimated, up to the newest row."""
    entry = (await studio.watcher.fresh()).get(id)
    names = [name for name in series.split(",") if name]
    return await in_thread(details.metrics, studio.bucket, studio.cache, entry, points, names, since)


@router.get("/trainings/{id}/checkpoints")
async def list_checkpoints(id: str, studio: TheStudio) -> Checkpoints:
    """List a training's checkpoints, with what was measured of each."""
    entry = (await studio.watcher.fresh()).get(id)
    return await in_thread(details.checkpoints, studio.bucket, entry)


def _sorted(found: list[Training], sort: Sort, descending: bool) -> list[Training]:
    """Sort trainings; those without a value come last either way."""

    def value(one: Training) -> float | int | str | None:
        if sort in ("loss", "step", "dead"):
            known: float | None = getattr(one.progress, sort)
            return known
        if sort in ("l0", "fvu", "delta_loss"):
            measured: float | None = getattr(one.quality, sort) if one.quality else getattr(one.progress, sort, None)
            return measured
        other: float | str | None = getattr(one, sort)
        return other

    with_value = [one for one in found if value(one) is not None]
    without = [one for one in found if value(one) is None]
    return sorted(with_value, key=lambda one: value(one), reverse=descending) + without  # type: ignore[arg-type, return-value]
