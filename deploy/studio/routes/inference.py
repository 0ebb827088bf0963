"""Steer a language model: one process infers, started at first use."""

from http import HTTPStatus

from fastapi import APIRouter, HTTPException

from scopemill.deploy.studio.models import Job, SteerRequest
from scopemill.deploy.studio.service import TheStudio

router = APIRouter(tags=["latents"])


@router.post("/steer", status_code=HTTPStatus.ACCEPTED)
async def steer(given: SteerRequest, studio: TheStudio) -> Job:
    """Continue a prompt unsteered, steered and randomly pushed; text comes on the channel ``job/<id>`` as it is written."""
    raise HTTPException(HTTPStatus.NOT_IMPLEMENTED, "this service cannot do that yet")


@router.get("/jobs/{id}")
async def show_job(id: str, studio: TheStudio) -> Job:
    """Show an import or a steering, with its result once it is completed."""
    raise HTTPException(HTTPStatus.NOT_IMPLEMENTED, "this service cannot do that yet")
