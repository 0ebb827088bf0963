"""Keep configurations of edits under names of the user's own.

They lie in the folder ``steering`` of the user's training templates, and follow the same rules of names. A template is a file that
``scopemill steer --file`` reads too: {configuration: [edit, ...]} in JSON.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from scopemill.evaluator.steering.edits import Edit
from scopemill.proto.errors import TemplateError
from scopemill.trainer.config.templates import check_name, own_folder

Configurations = dict[str, tuple[Edit, ...]]
_CONFIGURATIONS: TypeAdapter[Configurations] = TypeAdapter(Configurations)


def edit_templates() -> list[str]:
    """Return the names of all templates of edits."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def load_edits(name: str) -> Configurations:
    """Return the configurations of a template.

    Raises TemplateError, with the known names, if the template is unknown or unreadable.
    """
    path = _path(name)
    if not path.is_file():
        known = ", ".join(edit_templates()) or "none yet; scopemill steer --save NAME keeps one"
        raise TemplateError(f"edit template {name!r} is not known: there are {known}")
    return parse_edits(path.read_text(encoding="utf-8"), str(path))


def parse_edits(text: str, place: str) -> Configurations:
    """Return the configurations in a JSON text; TemplateError, naming ``place``, if the text holds none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{place} is not JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise TemplateError(f'{place} has to hold an object of configurations, such as {{"calm": [{{...}}]}}')
    try:
        return _CONFIGURATIONS.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise TemplateError(f"{place}: {field}: {first['msg'].removeprefix('Value error, ')}") from error


def save_edits(name: str, configurations: Mapping[str, Sequence[Edit]], replace: bool = False) -> Path:
    """Write configurations to the user's templates of edits and return the path.

    Local SAE folders are kept as absolute paths, so a template means the same wherever it is used. Raises TemplateError if the name is
    taken or invalid.
    """
    path = _path(name)
    if path.exists() and not replace:
        raise TemplateError(f"edit template {name!r} is there already ({path}): choose another name, or add --replace")
    kept = as_fields({title: [_anywhere(edit) for edit in edits] for title, edits in configurations.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return path


def as_fields(configurations: Mapping[str, Sequence[Edit]]) -> dict[str, list[dict[str, Any]]]:
    """Return configurations as JSON has them."""
    return {title: [edit.model_dump(mode="json", exclude_none=True) for edit in edits] for title, edits in configurations.items()}


def _anywhere(edit: Edit) -> Edit:
    """Return the edit with its SAE's folder as seen from every working directory."""
    return edit.model_copy(update={"sae": os.path.abspath(edit.sae)}) if "://" not in edit.sae and "::" not in edit.sae else edit


def _path(name: str) -> Path:
    check_name(name)
    return _folder() / f"{name}.json"


def _folder() -> Path:
    return own_folder() / "steering"
