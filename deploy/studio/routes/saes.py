"""List finished SAEs of the bucket and of Gemma Scope, and import the latter."""

from http import HTTPStatus
from shlex import quote
from typing import Annotated, Any

from fastapi import APIRouter, Query

from scopemill.deploy.studio.gemma_scope import choices
from scopemill.deploy.studio.helper import Note
from scopemill.deploy.studio.models.jobs import Job
from scopemill.deploy.studio.models.saes import GemmaScopePage, ImportRequest, SaePage
from scopemill.deploy.studio.saes import entries, origins
from scopemill.deploy.studio.service import TheStudio
from scopemill.deploy.studio.threads import in_thread

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
    model: str | None = None,
    site: str | None = None,
    layer: int | None = None,
    width: Annotated[str | None, Query(description="As the path has it: 16k.")] = None,
    least_l0: float | None = None,
    most_l0: float | None = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=2000)] = 100,
) -> GemmaScopePage:
    """List the SAEs of a Gemma Scope tree, and by what they can be chosen."""
    found = await studio.trees.entries(source)
    chosen = [
        one
        for one in found
        if model in (None, one.model)
        and site in (None, one.site)
        and layer in (None, one.layer)
        and width in (None, one.width)
        and (least_l0 is None or (one.l0 is not None and one.l0 >= least_l0))
        and (most_l0 is None or (one.l0 is not None and one.l0 <= most_l0))
    ]
    items = chosen[offset : offset + limit]
    known = await in_thread(origins, studio.bucket, studio.cache, await studio.watcher.fresh())
    imported = [one.folder for one in items if one.folder in known]
    return GemmaScopePage(source=source, items=items, total=len(chosen), offset=offset, choices=choices(found), imported=imported)


@router.post("/saes/import", status_code=HTTPStatus.ACCEPTED)
async def import_saes(given: ImportRequest, studio: TheStudio) -> Job:
    """Import the SAEs of a Gemma Scope tree that match.

    Progress comes on the channel ``job/<id>``. Imported ones are skipped.
    """
    command = f"scopemill import {quote(given.source)} {quote(studio.bucket.url)} --match {quote(given.match)}"

    async def work(note: Note) -> dict[str, Any]:
        roots = await studio.importer.call("import_saes", note, source=given.source, bucket=studio.bucket.url, match=given.match)
        await studio.watcher.again()
        return {"saes": roots}

    return studio.jobs.start("import", command, work)
