"""Start, stop, retry, delete and evaluate trainings: each becomes an object in the bucket that a driver carries out."""

from http import HTTPStatus

from fastapi import APIRouter, HTTPException

from scopemill.deploy.studio.models import (
    Asked,
    AskedAll,
    Estimate,
    EstimateRequest,
    Evaluated,
    EvaluateRequest,
    Ids,
    Started,
    StartSweep,
    StartTraining,
    Validation,
)
from scopemill.deploy.studio.service import TheStudio

router = APIRouter(tags=["trainings"])


def _not_yet() -> HTTPException:
    return HTTPException(HTTPStatus.NOT_IMPLEMENTED, "this service cannot do that yet")


@router.post("/trainings", status_code=HTTPStatus.ACCEPTED)
async def start_trainings(given: StartTraining, studio: TheStudio) -> Started:
    """Plan a sweep file's content, write it into the bucket, and start its driver."""
    raise _not_yet()


@router.post("/trainings/sweep", status_code=HTTPStatus.ACCEPTED)
async def start_sweep(given: StartSweep, studio: TheStudio) -> Started:
    """Start a parent with a child for each sparsity."""
    raise _not_yet()


@router.post("/trainings/estimate")
async def estimate(given: EstimateRequest, studio: TheStudio) -> Estimate:
    """Tell what a sweep would take in time, money and memory; nothing is started or written."""
    raise _not_yet()


@router.post("/trainings/validate")
async def validate(given: StartTraining, studio: TheStudio) -> Validation:
    """Check a sweep file's content field by field, by the models that read sweep files."""
    raise _not_yet()


@router.post("/trainings/{id}/stop", status_code=HTTPStatus.ACCEPTED)
async def stop_training(id: str, studio: TheStudio) -> Asked:
    """Stop a training after a checkpoint; retry goes on from there."""
    raise _not_yet()


@router.post("/trainings/{id}/retry", status_code=HTTPStatus.ACCEPTED)
async def retry_training(id: str, studio: TheStudio) -> Asked:
    """Train again what failed or was stopped, from its newest checkpoint; a driver is started if none is at work."""
    raise _not_yet()


@router.post("/trainings/{id}/evaluate")
async def evaluate_training(id: str, given: EvaluateRequest, studio: TheStudio) -> Evaluated:
    """Give the metrics asked for; those that were measured before come at once."""
    raise _not_yet()


@router.delete("/trainings/{id}", status_code=HTTPStatus.ACCEPTED)
async def delete_training(id: str, studio: TheStudio) -> Asked:
    """Delete a training with its checkpoints and weights; one at work is stopped first."""
    raise _not_yet()


@router.post("/trainings/stop", status_code=HTTPStatus.ACCEPTED)
async def stop_trainings(given: Ids, studio: TheStudio) -> AskedAll:
    """Stop several trainings."""
    raise _not_yet()


@router.post("/trainings/retry", status_code=HTTPStatus.ACCEPTED)
async def retry_trainings(given: Ids, studio: TheStudio) -> AskedAll:
    """Retry several trainings."""
    raise _not_yet()


@router.post("/trainings/delete", status_code=HTTPStatus.ACCEPTED)
async def delete_trainings(given: Ids, studio: TheStudio) -> AskedAll:
    """Delete several trainings."""
    raise _not_yet()
