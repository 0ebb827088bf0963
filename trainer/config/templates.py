"""Read and write templates: YAML files with named settings and their source.

The package has templates, and the user may keep others, in ``$SCOPEMILL_TEMPLATES`` or else in ``~/.config/scopemill/templates``.
"""

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from scopemill.proto.errors import TemplateError

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Template:
    """Hold fields of the ``train`` section.

    ``source`` says where the values come from, and which are ours.
    """

    name: str
    source: str
    fields: dict[str, Any]
    own: bool  # True for the user's, False for the package's

    def to_yaml(self) -> str:
        """Return the template's file as text."""
        return yaml.safe_dump({"source": self.source} | self.fields, sort_keys=False, width=120)


def own_folder() -> Path:
    """Return the folder of the user's own templates.

    Where the user has no home it begins with ``~``, and holds nothing.
    """
    return Path(os.environ.get("SCOPEMILL_TEMPLATES") or os.path.expanduser("~/.config/scopemill/templates"))


def templates() -> list[Template]:
    """Return every template, the package's first."""
    return [load_template(name) for name in _names()]


def load_template(name: str) -> Template:
    """Return the template of a name.

    Raises TemplateError, with the known names, if the template is unknown or unreadable.
    """
    for folder in _folders():
        path = folder / f"{name}.yaml"
        if _NAME.fullmatch(name) and path.is_file():
            return parse_template(name, path.read_text(encoding="utf-8"), str(path), own=folder == own_folder())
    raise TemplateError(f"template {name!r} is not known: there are {', '.join(_names())}")


def parse_template(name: str, text: str, place: str, own: bool = True) -> Template:
    """Return the template in a YAML text; TemplateError, naming ``place``, if the text is none."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TemplateError(f"template {place} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise TemplateError(f"template {place} nests its values too deeply: a template is one mapping of fields") from error
    if not isinstance(data, dict) or not isinstance(data.get("source"), str):
        raise TemplateError(f"template {place} is not a mapping of train fields with a 'source' that says where the values come from")
    return Template(name, data.pop("source"), data, own)


def save_template(template: Template, replace: bool = False) -> Path:
    """Write a template to the user's own and return its path.

    Raises TemplateError if the name is taken or invalid.
    """
    check_name(template.name)
    folder = own_folder()
    path = folder / f"{template.name}.yaml"
    if (_shipped() / path.name).exists():
        raise TemplateError(f"template {template.name!r} comes with the package: choose another name")
    if path.exists() and not replace:
        raise TemplateError(f"template {template.name!r} is there already ({path}): choose another name, or add --replace")
    if folder.parts[0] == "~":
        raise TemplateError(f"template {template.name!r}: you have no home folder: set SCOPEMILL_TEMPLATES to a folder for templates")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(template.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise TemplateError(f"template {template.name!r} cannot be written to {path}: {error.strerror}") from error
    return path


def check_name(name: str) -> None:
    """Raise TemplateError for a name that no template can have."""
    if not _NAME.fullmatch(name):
        raise TemplateError(f"template name {name!r}: use only small letters, digits, '.' and '-', and begin with a letter or digit")


def _names() -> list[str]:
    return [name for folder in _folders() for name in sorted(path.stem for path in folder.glob("*.yaml"))]


def _folders() -> list[Path]:
    return [_shipped(), own_folder()]


def _shipped() -> Path:
    return Path(str(files("scopemill.trainer") / "templates"))
