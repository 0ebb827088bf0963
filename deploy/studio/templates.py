"""Keep training templates on the bucket, ``training-templates/<name>.json``.

So everybody who uses the bucket has them. The templates that the package carries are among them; they cannot be changed, but be
favourites and be counted.
"""

import time
from typing import Any

from pydantic import BaseModel, ValidationError

from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.deploy.studio.models.templates import NewTemplate, Template, TemplateChange, TemplateExport
from scopemill.proto.errors import Conflict, CorruptObject, MissingObject, TemplateError
from scopemill.proto.layout import TemplateLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record
from scopemill.trainer.config.templates import templates as known_templates


class _Stored(BaseModel):
    """Hold what the bucket keeps of a template."""

    description: str = ""
    config: dict[str, Any] | None = None  # None: it is the package's, of which marks alone are kept
    favourite: bool = False
    uses: int = 0
    created: float | None = None
    changed: float | None = None


class Templates:
    """Read and write the templates of one bucket; any thread may call it."""

    def __init__(self, bucket: Bucket):
        self._bucket = bucket

    def all(self) -> list[Template]:
        """List all templates: favourites first, then those used most."""
        names = [name.removesuffix(".json") for name in self._bucket.names(TemplateLayout.root) if name.endswith(".json")]
        stored = {name: one for name, one in zip(names, side_by_side(self._read, names), strict=True) if one}
        packaged = _packaged()
        found = [_template(name, stored.get(name, _Stored()), packaged) for name in dict.fromkeys([*packaged, *stored])]
        return sorted((one for one in found if one), key=lambda one: (not one.favourite, -one.uses, one.name))

    def get(self, name: str) -> Template:
        """Return one template; MissingObject if there is none of this name."""
        found = _template(name, self._read(name) or _Stored(), _packaged())
        if found is None:
            raise MissingObject(f"there is no training template {name!r} in this bucket")
        return found

    def create(self, given: NewTemplate, replace: bool = False) -> Template:
        """Keep a new template; Conflict if its name is taken."""
        check(given)
        now, before = time.time(), self._read(given.name)
        taken = given.name in _packaged() or (before is not None and not replace)
        if taken:
            raise Conflict(f"there is a training template {given.name!r} already: choose another name, or delete that one first")
        kept = before or _Stored(created=now)
        fields = given.model_dump(exclude={"name"}) | {"changed": now}
        self._write(given.name, kept.model_copy(update=fields))
        return self.get(given.name)

    def change(self, name: str, given: TemplateChange) -> Template:
        """Change a template; of the package's ones only whether it is a favourite."""
        known = self.get(name)
        fields = given.model_dump(exclude_none=True)
        if not known.own and fields.keys() - {"favourite"}:
            raise Conflict(f"training template {name!r} comes with the package: duplicate it, and change the copy")
        if given.config is not None:
            check(NewTemplate(name=name, config=given.config))
        stored = self._read(name) or _Stored()
        changed = {} if fields.keys() <= {"favourite"} else {"changed": time.time()}
        self._write(name, stored.model_copy(update=fields | changed))
        return self.get(name)

    def delete(self, name: str) -> None:
        """Delete a template of one's own."""
        if not self.get(name).own:
            raise Conflict(f"training template {name!r} comes with the package and cannot be deleted")
        self._bucket.remove(TemplateLayout(name).path)

    def duplicate(self, name: str, new: str) -> Template:
        """Copy a template under another name."""
        known = self.get(name)
        return self.create(NewTemplate(name=new, description=known.description, config=known.config))

    def used(self, name: str) -> None:
        """Count one use of a template."""
        known = self.get(name)
        stored = self._read(name) or _Stored()
        self._write(name, stored.model_copy(update={"uses": known.uses + 1}))

    def export(self, names: list[str]) -> TemplateExport:
        """Return templates as a document; without names all of one's own."""
        chosen = [self.get(name) for name in names] if names else [one for one in self.all() if one.own]
        fields = ("name", "description", "config", "favourite")
        return TemplateExport(templates=[NewTemplate(**{field: getattr(one, field) for field in fields}) for one in chosen])

    def take_in(self, document: TemplateExport, replace: bool) -> list[Template]:
        """Keep the templates of a document.

        Keeps none if one of them is not valid or its name is taken.
        """
        there = {one.name for one in self.all()} if not replace else set(_packaged())
        for one in document.templates:
            check(one)
            if one.name in there:
                raise Conflict(f"there is a training template {one.name!r} already: import with replace, or rename it in the document")
        return [self.create(one, replace) for one in document.templates]

    def _read(self, name: str) -> _Stored | None:
        try:
            return _Stored.model_validate(read_record(self._bucket, TemplateLayout(name).path))
        except (MissingObject, CorruptObject, ValidationError):
            return None

    def _write(self, name: str, stored: _Stored) -> None:
        self._bucket.write(TemplateLayout(name).path, checksummed_record(stored.model_dump(mode="json")))


def check(given: NewTemplate) -> None:
    """Raise TemplateError unless a template's fields are a sweep file's.

    InputError for a name that cannot be a file's.
    """
    TemplateLayout(given.name)
    for section, value in given.config.items():
        field = SweepConfig.model_fields.get(section)
        if field is None:
            known = ", ".join(SweepConfig.model_fields)
            raise TemplateError(f"training template {given.name!r}: {section}: a sweep file has no such section: choose from {known}")
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        models = [kind.model_fields for kind in kinds if hasattr(kind, "model_fields")]
        unknown = sorted(value.keys() - models[0].keys()) if models and isinstance(value, dict) else []
        if unknown:
            raise TemplateError(f"training template {given.name!r}: {section}.{unknown[0]}: there is no such field")


_Packaged = dict[str, tuple[str, dict[str, Any]]]  # source and fields by name


def _packaged() -> _Packaged:
    return {one.name: (one.source, one.fields) for one in known_templates()}


def _template(name: str, stored: _Stored, packaged: _Packaged) -> Template | None:
    """Return a template as it is shown: of one that the package carries, the content is the package's."""
    marks = {"name": name, "favourite": stored.favourite, "uses": stored.uses, "created": stored.created, "changed": stored.changed}
    if name in packaged:
        source, fields = packaged[name]
        return Template(description=source, config={"train": {"template": name} | fields}, own=False, **marks)  # type: ignore[arg-type]
    if stored.config is None:
        return None
    return Template(description=stored.description, config=stored.config, own=True, **marks)  # type: ignore[arg-type]
