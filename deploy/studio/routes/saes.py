"""Browse finished SAEs of the bucket and of Gemma Scope, and import the latter."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query

from scopemill.deploy.studio.models import GemmaScopePage, ImportRequest, Job, SaePage
from scopemill.deploy.studio.saes import entries
from scopemill.deploy.studio.service import TheStudio, in_thread

router = APIRouter(tags=["saes"])


@router.get("/saes")
async def list_saes(
    studio: TheStudio,
    text: Annotated[str, Query(description="A part of the path; case does not count.")] = "",
    model: str | None = None,
    layer: int | None = None,
    architecture: str | None = None,
    width: int | None = None,
    evidence: Annotated[bool, Query(description="Only those whose latents can be browsed.")] = False,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=2000)] = 100,
) -> SaePage:
    """List the bucket's finished SAEs, whoever made them."""
    trainings = await studio.watcher.fresh()
    found = [
        one
        for one in await in_thread(entries, studio.bucket, studio.cache, trainings)
        if text.casefold() in one.path.casefold()
        and model in (None, one.model)
        and layer in (None, one.layer)
        and architecture in (None, one.architecture)
        and width in (None, one.width)
        and (one.evidence or not evidence)
    ]
    return SaePage(items=found[offset : offset + limit], total=len(found), offset=offset)


@router.get("/saes/gemma-scope")
async def browse_gemma_scope(
    studio: TheStudio,
    source: Annotated[str, Query(description="Such as hf://google/gemma-scope-2b-pt-res, a copy of it, any fsspec URL.")],
    site: str | None = None,
    layer: int | None = None,
    width: Annotated[str | None, Query(description="As the path has it: 16k.")] = None,
    least_l0: float | None = None,
    most_l0: float | None = None,
) -> GemmaScopePage:
    """List the SAEs of a Gemma Scope tree."""
    raise HTTPException(HTTPStatus.NOT_IMPLEMENTED, "this service cannot do that yet")


@router.post("/saes/import", status_code=HTTPStatus.ACCEPTED)
async def import_saes(given: ImportRequest, studio: TheStudio) -> Job:
    """Import the SAEs of a Gemma Scope tree that match; progress comes on the channel ``job/<id>``."""
    raise HTTPException(HTTPStatus.NOT_IMPLEMENTED, "this service cannot do that yet")
