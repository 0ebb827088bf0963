"""The sweep file's reference, `docs/sweep-file.md`, written from the fields themselves: ``python -m scopemill.deploy.plan.reference``."""

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.trainer.config.grid import ONE_FOR_ALL, Grid, Variant
from scopemill.trainer.config.templates import templates

_INTRO = """# The sweep file

One YAML file. Unknown fields and impossible values are refused before any work starts; `--set section.field=value` replaces one.
Sizes are rows (tokens) unless they say otherwise. Written from the code by `python -m scopemill.deploy.plan.reference`.
"""

_VARIANT = (
    "Each variant also takes the fields of `train` from `architecture` to `sparsities`. "
    f"Of {', '.join(f'`{field}`' for field in ONE_FOR_ALL)} there is one for the whole sweep.",
    "What a variant does not give is taken from `train`, and what is not given there from the variant's template.",
)


def render() -> str:
    sections: list[tuple[str, type[BaseModel]]] = [("", SweepConfig)]
    lines = [_INTRO]
    while sections:
        section, model = sections.pop(0)
        lines += [f"## {section}" if section else "## Top level", ""]
        lines += [*_VARIANT, ""] if model is Variant else []
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        of_section = Grid.model_fields if model is Variant else {}
        for name, field in model.model_fields.items():
            if name in of_section:
                continue
            lines.append(f"| `{name}` | {_type(field)} | {_default(field)} | {field.description} |")
            sections += [(f"{section}.{name}".lstrip("."), nested) for nested in _nested(field)]
        lines.append("")
    return "\n".join(lines + list(_templates()))


def _templates() -> Iterator[str]:
    shipped = [t for t in templates() if not t.own]
    fields = list(dict.fromkeys(field for template in shipped for field in template.fields))
    yield "## Templates of `train`"
    yield ""
    yield from (f"- `{template.name}`: {template.source}" for template in shipped)
    yield ""
    yield "| field | " + " | ".join(template.name for template in shipped) + " |"
    yield "|---" * (len(shipped) + 1) + "|"
    for field in fields:
        values = (template.fields.get(field, "") for template in shipped)
        yield f"| `{field}` | " + " | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in values) + " |"
    yield ""


def _nested(field: FieldInfo) -> list[type[BaseModel]]:
    candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]


def _type(field: FieldInfo) -> str:
    if _nested(field):
        return "a list of mappings, see below" if "tuple" in str(field.annotation) else "a mapping, see below"
    text = str(field.annotation) if not isinstance(field.annotation, type) else field.annotation.__name__
    if "'all'" in text:
        return "list, or 'all'"
    text = text.replace("Optional[", "").replace("]]", "]") if "Optional[" in text else text
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
