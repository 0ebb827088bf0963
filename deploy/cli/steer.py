"""Steer a language model by latents: the command ``scopemill steer``."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scopemill.deploy.cli.options import console, print_line

if TYPE_CHECKING:
    from scopemill.evaluator.steering.steerer import Steered


def steer(
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    sae: Annotated[str | None, typer.Argument(metavar="[SAE]", help="Folder of a finished SAE: a path or fsspec URL.")] = None,
    model: Annotated[str | None, typer.Option(help="The language model: a Hugging Face id or a local folder. Default: the SAE's.")] = None,
    latent: Annotated[int | None, typer.Option(help="The latent to edit.")] = None,
    op: Annotated[str, typer.Option(help="add, scale, clamp or ablate.")] = "add",
    amount: Annotated[float | None, typer.Option(help="How much, in the latent's largest activations; scale: the factor.")] = None,
    unit: Annotated[str, typer.Option(help="maximum, or raw for raw activations.")] = "maximum",
    where: Annotated[str, typer.Option(help="all, prompt or generated.")] = "all",
    file: Annotated[str | None, typer.Option(help="JSON file of configurations: {name: [edit, ...]}; see docs/steering.md.")] = None,
    template: Annotated[str | None, typer.Option(help="Configurations that --save kept under this name.")] = None,
    save: Annotated[str | None, typer.Option(help="Keep the configurations of this command under a name.")] = None,
    replace: Annotated[bool, typer.Option(help="Of --save: replace your own template of that name.")] = False,
    length: Annotated[int, typer.Option(help="Tokens to generate.")] = 48,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Random seed: the same seed gives the same text.")] = 0,
    samples: Annotated[int, typer.Option(help="Texts per configuration.")] = 1,
    text: Annotated[str | None, typer.Option(help="File of text to measure on. Default: what the model writes after the prompt.")] = None,
    doses: Annotated[bool, typer.Option("--doses", help="Also measure several doses, up to where text collapses.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue a prompt unsteered, steered and randomly pushed, and measure what steering did."""
    edit = {"sae": sae, "latent": latent, "op": op, "amount": amount, "unit": unit, "where": where}
    configurations = _configurations(edit, file, template)
    from scopemill.deploy.plan.sweep_file import parse_config
    from scopemill.evaluator.steering.steerer import Steerer, SteeringRequest
    from scopemill.evaluator.steering.templates import save_edits
    from scopemill.harvester.config import named_model

    fields: dict[str, Any] = {"prompt": prompt, "configurations": configurations, "samples": samples, "doses": doses}
    fields["sampling"] = {"length": length, "temperature": temperature, "seed": seed}
    request = parse_config(SteeringRequest, fields | {"text": _read(text) if text else None}, "steer")
    if save:
        typer.echo(str(save_edits(save, request.configurations, replace)), err=True)
    first = next(iter(request.configurations.values()))[0].sae
    steerer = Steerer(named_model(model or model_of(first)))
    results = steerer.steer(request)
    if as_json:
        print_line(json.dumps({name: dataclasses.asdict(result) for name, result in results.items()}, indent=1))
    else:
        _show(results)


def _configurations(edit: dict[str, Any], file: str | None, template: str | None) -> dict[str, Any]:
    """Return the configurations of a file, a template and the command line, each beside the others."""
    from scopemill.evaluator.steering.templates import as_fields, load_edits, parse_edits
    from scopemill.proto.errors import InputError

    configurations: dict[str, Any] = {}
    given = [(f"--file {file}", as_fields(parse_edits(_read(file), file)))] if file else []
    given += [(f"--template {template}", as_fields(load_edits(template)))] if template else []
    if edit["latent"] is not None:
        if edit["sae"] is None:
            raise InputError("--latent needs the folder of its SAE: scopemill steer SAE --latent ... --prompt ...")
        given.append(("--latent", {"steered": [{name: value for name, value in edit.items() if value is not None}]}))
    for place, found in given:
        if twice := sorted(configurations.keys() & found):
            raise InputError(f"{place}: there is another configuration {twice[0]!r}: give one of them another name")
        configurations |= found
    if not configurations:
        raise InputError("nothing to steer by: give an SAE and --latent, --file or --template")
    return configurations


def _read(path: str) -> str:
    import fsspec

    from scopemill.proto.errors import InputError

    try:
        with fsspec.open(path, "r", encoding="utf-8") as file:
            return str(file.read())
    except Exception as error:  # stores raise errors of many kinds
        raise InputError(f"{path} cannot be read: {error}") from error


def model_of(sae: str) -> str:
    """Return the language model that an SAE names; InputError if it names none."""
    from scopemill.proto.errors import InputError
    from scopemill.trainer.formats import read_finished

    if model := read_finished(sae).model:
        return model
    raise InputError(f"{sae} does not name its language model: give --model")


_SEEN = {"evidence": "from its evidence", "text": "on the text; it has no evidence"}


def _show(results: "dict[str, Steered]") -> None:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    for name, result in results.items():
        for text in result.texts:
            console.print(Panel(Text(text), title=Text(name), title_align="left"))
    table = Table(box=None, pad_edge=False)
    for column in ("configuration", "KL (nats/token)", "\u0394 loss", "promoted tokens", "of the model", "output score"):
        table.add_column(column, justify="left" if column == "configuration" else "right", overflow="fold")
    for name, result in results.items():
        if effect := result.effect:
            scores = ", ".join(f"{score:.3f}" for score in (result.scores or {}).values())
            shares = (f"{effect.promoted:.2%}", f"{effect.promoted_before:.2%}")
            table.add_row(Text(name), f"{effect.kl:.4f}", f"{effect.delta_loss:+.4f}", *shares, scores)
    console.print(table)
    for name, result in results.items():
        for one in result.maxima or ():
            print_line(f"{name}: the largest activation of latent {one.latent} is {one.value:.4g} ({_SEEN[one.source]})")
        if result.doses:
            console.print(_dose_table(name, result))


def _dose_table(name: str, result: "Steered") -> Any:
    from rich.table import Table
    from rich.text import Text

    collapse = f"text collapses at dose {result.collapse:g}" if result.collapse else "text does not collapse at these doses"
    table = Table(title=Text(f"{name}: {collapse}"), title_justify="left", box=None, pad_edge=False)
    for column in ("dose", "KL", "of a random push", "\u0394 loss", "of a random push", "promoted tokens", "repeated"):
        table.add_column(column, justify="right")
    for dose in result.doses or []:
        steered, control = dose.steered, dose.control
        table.add_row(
            f"{dose.dose:g}", f"{steered.kl:.4f}", f"{control.kl:.4f}", f"{steered.delta_loss:+.4f}", f"{control.delta_loss:+.4f}",
            f"{steered.promoted:.2%}", f"{dose.repeated:.0%}",
        )  # fmt: skip
    return table
