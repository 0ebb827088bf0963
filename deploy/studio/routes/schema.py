"""Describe what can be started, so that a form is made of it."""

import json
from functools import cache

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.deploy.studio.threads import in_thread
from scopemill.trainer.config.recipe import Recipe, readers

router = APIRouter(tags=["trainings"])  # before the router of trainings: `schema` is no id


@router.get("/trainings/schema")
async def show_schema() -> Response:
    """Give the JSON schema of a sweep file.

    ``readBy`` tells which SAEs read a field of ``train``.
    """
    return Response(await in_thread(_schema), media_type="application/json")


@router.get("/openapi.json", include_in_schema=False)
async def show_interface(request: Request) -> JSONResponse:
    """Describe this interface, as OpenAPI."""
    return await in_thread(lambda: JSONResponse(request.app.openapi()))


@cache
def _schema() -> bytes:
    schema = SweepConfig.model_json_schema()
    for name, field in schema["$defs"]["TrainConfig"]["properties"].items():
        if name in Recipe.model_fields:
            field["readBy"] = readers(name)
    return json.dumps(schema, separators=(",", ":")).encode()
