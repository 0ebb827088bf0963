"""Show, keep and share named training settings: the command ``scopemill templates``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import fsspec
import typer
from rich.table import Table

from scopemill.deploy.cli.options import console, print_line
from scopemill.proto.errors import InputError, TemplateError

if TYPE_CHECKING:  # --help must not wait for it
    from scopemill.trainer.config.templates import Template

templates_app = typer.Typer(help="Show, keep and share named training settings: the package's and your own.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A template's name.")]
Replace = Annotated[bool, typer.Option(help="Replace your own template of that name.")]
# Fields of a sweep's train section about the machine, not the SAEs: a template does not keep them.
_OF_THE_MACHINE = {"template", "variants", "at_once", "cpus", "gpus"}


@templates_app.command("list")
def list_() -> None:
    """List every template and the source of its settings."""
    from scopemill.evaluator.steering.templates import edit_templates
    from scopemill.trainer.config.templates import templates

    table = Table(box=None, pad_edge=False)
    for column in ("name", "whose", "architecture", "source"):
        table.add_column(column, no_wrap=column != "source")
    for template in templates():
        table.add_row(template.name, "yours" if template.own else "package", str(template.fields.get("architecture", "")), template.source)
    for name in edit_templates():
        table.add_row(name, "yours", "(edits)", f"for scopemill steer --template {name}")
    console.print(table)


@templates_app.command()
def show(name: Name) -> None:
    """Print a template."""
    from scopemill.trainer.config.templates import load_template

    print(load_template(name).to_yaml(), end="")


@templates_app.command()
def save(
    name: Name,
    sweep: Annotated[str, typer.Option("--from", metavar="SWEEP.yaml", help="The sweep file whose train section is kept.")],
    replace: Replace = False,
) -> None:
    """Keep a sweep's train section as a template of your own."""
    from scopemill.deploy.plan.sweep_file import load_sweep
    from scopemill.trainer.config.recipe import Recipe
    from scopemill.trainer.config.templates import Template

    train = load_sweep(sweep).train
    if train.variants:
        raise InputError(f"{sweep}: train.variants: a template is one recipe, and this section has {len(train.variants)}")
    all_fields = train.model_dump(mode="json") | Recipe.model_validate(train.filled).model_dump(mode="json")  # its SAEs keep their ids
    fields = {field: value for field, value in all_fields.items() if value is not None and field not in _OF_THE_MACHINE}
    _keep(Template(name, f"The sweep file {sweep}, which started from the template {train.template}.", fields, own=True), replace)


@templates_app.command()
def copy(name: Name, new: Annotated[str, typer.Argument(help="The name of your copy.")], replace: Replace = False) -> None:
    """Copy a template under another name."""
    from scopemill.trainer.config.templates import Template, load_template

    template = load_template(name)
    _keep(Template(new, template.source, template.fields, own=True), replace)


@templates_app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="TEMPLATE.yaml", help="A template's file: a path or any fsspec URL.")],
    name: Annotated[str | None, typer.Option(help="The template's name; by default the file's.")] = None,
    replace: Replace = False,
) -> None:
    """Keep a template from a file."""
    from scopemill.trainer.config.templates import parse_template

    try:
        with fsspec.open(file, "r", encoding="utf-8") as opened:
            text = opened.read()
    except Exception as error:  # stores raise errors of many kinds
        raise TemplateError(f"template {file} cannot be read: {error}") from error
    _keep(parse_template(name or Path(file).stem, text, file), replace)


@templates_app.command()
def export(name: Name, file: Annotated[str, typer.Argument(metavar="TEMPLATE.yaml", help="The file to write; it must not exist.")]) -> None:
    """Write a template to a file, to share it."""
    from scopemill.trainer.config.templates import load_template

    text = load_template(name).to_yaml()
    try:
        with open(file, "x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from error
    print_line(file)


def _keep(template: "Template", replace: bool) -> None:
    from scopemill.trainer.config.templates import save_template

    check_template(template)
    print_line(str(save_template(template, replace)))


def check_template(template: "Template") -> None:
    """Raise TemplateError if the template does not fit a ``train`` section.

    It does not if it has a field that the section refuses, or lacks a required field. A template may leave out widths and
    sparsities; stand-ins that fit every architecture take their place.
    """
    from pydantic import ValidationError

    from scopemill.trainer.config.effects import switched_off
    from scopemill.trainer.config.grid import TrainConfig
    from scopemill.trainer.config.recipe import Recipe, only_read

    missing = [name for name, field in Recipe.model_fields.items() if field.is_required() and name not in template.fields]
    if missing:
        raise TemplateError(f"template {template.name!r} lacks {', '.join(missing)}")
    if "template" in template.fields:
        raise TemplateError(f"template {template.name!r}: remove the field template: a template cannot build on another one")
    off = switched_off(template.fields)
    fields = {field: value for field, value in only_read(template.fields).items() if field not in off}
    try:
        TrainConfig.model_validate_json(json.dumps({"widths": [1024], "sparsities": [0.5]} | fields))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise TemplateError(f"template {template.name!r}: {f'{field}: ' if field else ''}{reason}") from error
    except (TypeError, ValueError) as error:
        raise TemplateError(f"template {template.name!r} holds a value that no field accepts: {error}") from error
