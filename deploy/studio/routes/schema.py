"""Describe what can be started, so that a form is made of it."""

from typing import Any

from fastapi import APIRouter

from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.trainer.config.recipe import Recipe, readers

router = APIRouter(tags=["trainings"])  # before the router of trainings: `schema` is no id


@router.get("/trainings/schema")
async def show_schema() -> dict[str, Any]:
    """Give the JSON schema of a sweep file.

    ``readBy`` tells which SAEs read a field of ``train``.
    """
    schema = SweepConfig.model_json_schema()
    for name, field in schema["$defs"]["TrainConfig"]["properties"].items():
        if name in Recipe.model_fields:
            field["readBy"] = readers(name)
    return schema
