"""Define training templates."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from scopemill.deploy.studio.models.given import Given


class Template(BaseModel):
    """Describe a training template."""

    name: str
    description: str
    config: dict[str, Any] = Field(description="Part of a sweep file's mapping, such as {'train': {...}}.")
    favourite: bool
    uses: int
    own: bool = Field(description="False for those that the package carries, which cannot be changed.")
    created: float | None
    changed: float | None


class TemplateFields(Given):
    """Give a template's content."""

    description: str = ""
    config: dict[str, Any]
    favourite: bool = False


class NewTemplate(TemplateFields):
    """Give a new template's name and content."""

    name: str


class TemplateChange(Given):
    """Give those fields of a template that change."""

    description: str | None = None
    config: dict[str, Any] | None = None
    favourite: bool | None = None


class NewName(Given):
    """Name a copy."""

    name: str


class TemplateExport(Given):
    """Hold templates as they are exported and imported."""

    format: Literal[1] = 1
    templates: list[NewTemplate]
