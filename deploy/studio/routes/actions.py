"""Start, stop, retry, delete and evaluate trainings.

Each becomes an object in the bucket that a driver carries out.
"""

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter

from scopemill.deploy.plan.requests import Action
from scopemill.deploy.studio import quality
from scopemill.deploy.studio.models.actions import Asked, AskedAll, Evaluated, EvaluateRequest, Ids
from scopemill.deploy.studio.models.starting import Estimate, EstimateRequest, Started, StartSweep, StartTraining, Validation
from scopemill.deploy.studio.service import Studio, TheStudio
from scopemill.deploy.studio.starting import prepared, validation
from scopemill.deploy.studio.threads import in_thread
from scopemill.deploy.studio.trainings import id_of
from scopemill.proto.layout import SweepLayout

router = APIRouter(tags=["trainings"])


@router.post("/trainings", status_code=HTTPStatus.ACCEPTED)
async def start_trainings(given: StartTraining, studio: TheStudio) -> Started:
    """Plan a sweep file's content, write it into the bucket, and start its driver."""
    return await _start(studio, await in_thread(prepared, studio.bucket, given.config), given.template)


@router.post("/trainings/sweep", status_code=HTTPStatus.ACCEPTED)
async def start_sweep(given: StartSweep, studio: TheStudio) -> Started:
    """Start a parent with a child for each sparsity."""
    return await _start(studio, await in_thread(prepared, studio.bucket, given.config, given.sparsities), given.template)


async def _start(studio: Studio, config: dict[str, Any], template: str | None) -> Started:
    name = str(config["name"])
    if template is not None:
        await in_thread(studio.templates.get, template)
    saes = await studio.planner.call("plan", config=config)
    await studio.launcher.start(name, "sweep")
    if template is not None:
        await in_thread(studio.templates.used, template)
    await studio.watcher.again()
    return Started(
        sweep=name, trainings=[id_of(name, sae) for sae in saes], driver=studio.launcher.who, command=_command(studio, name, "sweep")
    )


@router.post("/trainings/estimate")
async def estimate(given: EstimateRequest, studio: TheStudio) -> Estimate:
    """Tell what a sweep would take in time, money and memory.

    Nothing is started or written.
    """
    config = await in_thread(prepared, studio.bucket, given.config)
    own = {"price": given.price, "utilisation": given.utilisation}
    found = await studio.planner.call("estimate", config=config, hardware=given.hardware, given=own)
    return Estimate(**found, command=f"scopemill plan SWEEP.yaml --hardware {given.hardware}")


@router.post("/trainings/validate")
async def validate(given: StartTraining, studio: TheStudio) -> Validation:
    """Check a sweep file's content field by field, by the models that read sweep files."""
    return await in_thread(validation, studio.bucket, given.config)


@router.post("/trainings/{id}/stop", status_code=HTTPStatus.ACCEPTED)
async def stop_training(id: str, studio: TheStudio) -> Asked:
    """Stop a training after a checkpoint; retry goes on from there."""
    return await _ask(studio, "stop", id)


@router.post("/trainings/{id}/retry", status_code=HTTPStatus.ACCEPTED)
async def retry_training(id: str, studio: TheStudio) -> Asked:
    """Train again what failed or was stopped, from its newest checkpoint.

    A driver is started if none is at work. A driver that is started goes on with everything that its sweep has left to do.
    """
    return await _ask(studio, "retry", id)


@router.delete("/trainings/{id}", status_code=HTTPStatus.ACCEPTED)
async def delete_training(id: str, studio: TheStudio) -> Asked:
    """Delete a training with its checkpoints and weights; one at work is stopped first."""
    return await _ask(studio, "delete", id)


@router.post("/trainings/{id}/evaluate")
async def evaluate_training(id: str, given: EvaluateRequest, studio: TheStudio) -> Evaluated:
    """Give the metrics asked for.

    Those that were measured before come at once, and for others the driver is asked.
    """
    entry = (await studio.watcher.fresh()).get(id)
    there = quality.measured(entry, given.metrics)
    asked = None
    if not there.cached and not studio.access.read_only:
        (asked,) = await studio.dispatcher.ask("evaluate", [entry])
        await studio.watcher.again()
    return there.model_copy(update={"request": asked})


@router.post("/trainings/stop", status_code=HTTPStatus.ACCEPTED)
async def stop_trainings(given: Ids, studio: TheStudio) -> AskedAll:
    """Stop several trainings."""
    return await _ask_all(studio, "stop", given)


@router.post("/trainings/retry", status_code=HTTPStatus.ACCEPTED)
async def retry_trainings(given: Ids, studio: TheStudio) -> AskedAll:
    """Retry several trainings."""
    return await _ask_all(studio, "retry", given)


@router.post("/trainings/delete", status_code=HTTPStatus.ACCEPTED)
async def delete_trainings(given: Ids, studio: TheStudio) -> AskedAll:
    """Delete several trainings."""
    return await _ask_all(studio, "delete", given)


async def _ask(studio: Studio, action: Action, id: str) -> Asked:
    (asked,) = await studio.dispatcher.ask(action, [(await studio.watcher.fresh()).get(id)])
    await studio.watcher.again()
    return asked


async def _ask_all(studio: Studio, action: Action, given: Ids) -> AskedAll:
    asked = await studio.dispatcher.ask_all(action, await studio.watcher.fresh(), given.ids)
    await studio.watcher.again()
    return asked


def _command(studio: Studio, sweep: str, command: str) -> str:
    file = studio.bucket.place(SweepLayout(sweep).config)
    return f"scopemill submit {file} --address {studio.settings.address}" if studio.settings.address else f"scopemill {command} {file}"
