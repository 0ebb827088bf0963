"""Write the sweep file's reference, `docs/sweep-file.md`, from the fields: ``python -m scopemill.deploy.plan.reference``."""

import re
import textwrap
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.trainer.config.fields import OWN_ACTIVATION, ArchitectureName
from scopemill.trainer.config.grid import ONE_FOR_ALL, Grid, TrainConfig, Variant
from scopemill.trainer.config.recipe import Recipe, readers
from scopemill.trainer.config.templates import templates

COLUMNS = 100

_INTRO = """# The sweep file

A sweep file is one YAML file. Unknown fields and impossible values are refused before any work starts.
`--set section.field=value` replaces one field. Sizes are in rows (tokens) unless a field says otherwise.
Commands also take the file in the bucket, `sweeps/NAME/sweep.yaml`: it stands for the sweep as it was given, from any folder.
`python -m scopemill.deploy.plan.reference` writes this page from the code.
"""

_OWN = ", ".join(f"`{name}` ({activation})" if name != activation else f"`{name}`" for name, activation in OWN_ACTIVATION.items())
_OPEN = ", ".join(f"`{name}`" for name in get_args(ArchitectureName) if name not in OWN_ACTIVATION)
_ABOUT: dict[type[BaseModel], str] = {
    TrainConfig: f"The column *read by* says which SAEs a field is for. A field that no SAE of the section reads is refused; a template's "
    f"value for such a field is dropped. These architectures have their own latents: {_OWN}. These take `activation`: {_OPEN}.",
    Variant: "Each variant also takes the fields of `train` from `architecture` to `sparsities`, except that "
    f"{', '.join(f'`{field}`' for field in ONE_FOR_ALL)} are the same in the whole sweep. A field that a variant does not give has the "
    "value in `train`, or else the value of the variant's template. A field of `train` has to be read by at least one variant.",
}


def render() -> str:
    """Return the reference as Markdown."""
    sections: list[tuple[str, type[BaseModel]]] = [("", SweepConfig)]
    lines = [_wrapped(_INTRO), ""]
    while sections:
        section, model = sections.pop(0)
        about = [_wrapped(_ABOUT[model]), ""] if model in _ABOUT else []
        lines += [f"## {section}" if section else "## Top level", "", *about, *_table(model), ""]
        for name, field in _own_fields(model).items():
            sections += [(f"{section}.{name}".lstrip("."), nested) for nested in _nested(field)]
    return "\n".join([*lines, *_templates()])


def _table(model: type[BaseModel]) -> Iterator[str]:
    of_recipe = issubclass(model, TrainConfig)
    columns = ["field", "type", "default", *(["read by"] if of_recipe else []), "meaning"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for name, field in _own_fields(model).items():
        read_by = [readers(name) if name in Recipe.model_fields else ""] if of_recipe else []
        meaning = (field.description or "").replace("|", r"\|")  # in a table, | ends a cell
        yield f"| {' | '.join([f'`{name}`', _type(field), _default(field), *read_by, meaning])} |"


def _own_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a section's fields; for a variant without the fields that are listed in `train`."""
    listed = Grid.model_fields if model is Variant else {}
    return {name: field for name, field in model.model_fields.items() if name not in listed}


def _templates() -> Iterator[str]:
    shipped = [t for t in templates() if not t.own]
    fields = list(dict.fromkeys(field for template in shipped for field in template.fields))
    yield "## Templates of `train`"
    yield ""
    yield from (_wrapped(f"- `{template.name}`: {template.source}", hanging="  ") for template in shipped)
    yield ""
    yield "| field | " + " | ".join(template.name for template in shipped) + " |"
    yield "|---" * (len(shipped) + 1) + "|"
    for field in fields:
        values = (template.fields.get(field, "") for template in shipped)
        yield f"| `{field}` | " + " | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in values) + " |"
    yield ""


def _wrapped(text: str, hanging: str = "") -> str:
    """Wrap the paragraphs of a text."""
    return "\n\n".join(
        textwrap.fill(paragraph, COLUMNS, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)
        for paragraph in text.strip().split("\n\n")
    )


def _nested(field: FieldInfo) -> list[type[BaseModel]]:
    candidates = [field.annotation, *get_args(field.annotation)]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]


def _type(field: FieldInfo) -> str:
    if _nested(field):
        return "a list of mappings, see below" if "tuple" in str(field.annotation) else "a mapping, see below"
    text = str(field.annotation) if not isinstance(field.annotation, type) else field.annotation.__name__
    if "'all'" in text:
        return "list, or 'all'"
    text = text.replace("Optional[", "").replace("]]", "]") if "Optional[" in text else text
    text = re.sub(r"Annotated\[(\w+), \w+\(func=<[^>]*>\)\]", r"\1", text)  # a type with a check of its own
    for long, short in (("typing.", ""), ("Literal", "one of "), ("tuple[", "list of ["), (", ...]", "]"), (" | None", "")):
        text = text.replace(long, short)
    return text


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    return "" if field.default in (None, ()) else f"`{field.default}`"


if __name__ == "__main__":
    print(render(), end="")
