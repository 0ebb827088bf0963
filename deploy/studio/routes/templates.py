"""Keep training templates: parts of sweep files, as objects on the bucket."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from scopemill.deploy.studio.models.templates import NewName, NewTemplate, Template, TemplateChange, TemplateExport
from scopemill.deploy.studio.service import TheStudio
from scopemill.deploy.studio.threads import in_thread

router = APIRouter(prefix="/training-templates", tags=["training-templates"])


@router.get("")
async def list_templates(studio: TheStudio) -> list[Template]:
    """List all templates: favourites first, then those used most."""
    return await in_thread(studio.templates.all)


@router.post("", status_code=HTTPStatus.CREATED)
async def create_template(given: NewTemplate, studio: TheStudio) -> Template:
    """Keep a new template."""
    return await in_thread(studio.templates.create, given)


@router.get("/export")
async def export_templates(
    studio: TheStudio, name: Annotated[list[str] | None, Query(description="May be repeated; absent: all of your own.")] = None
) -> TemplateExport:
    """Give templates as one JSON document, which import takes."""
    return await in_thread(studio.templates.export, name or [])


@router.post("/import")
async def import_templates(
    given: TemplateExport, studio: TheStudio, replace: Annotated[bool, Query(description="Replace those of the same name.")] = False
) -> list[Template]:
    """Keep the templates of an exported document; none of them if one is not valid."""
    return await in_thread(studio.templates.take_in, given, replace)


@router.get("/{name}")
async def show_template(name: str, studio: TheStudio) -> Template:
    """Show one template."""
    return await in_thread(studio.templates.get, name)


@router.patch("/{name}")
async def change_template(name: str, given: TemplateChange, studio: TheStudio) -> Template:
    """Change a template of your own; any template can be a favourite."""
    return await in_thread(studio.templates.change, name, given)


@router.delete("/{name}", status_code=HTTPStatus.NO_CONTENT)
async def delete_template(name: str, studio: TheStudio) -> Response:
    """Delete a template of your own."""
    await in_thread(studio.templates.delete, name)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.post("/{name}/duplicate", status_code=HTTPStatus.CREATED)
async def duplicate_template(name: str, given: NewName, studio: TheStudio) -> Template:
    """Copy a template under another name, which is then your own."""
    return await in_thread(studio.templates.duplicate, name, given.name)
