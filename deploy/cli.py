"""The command line: ``scopemill sweep SWEEP.yaml`` and its parts."""

import signal
import sys
from contextlib import nullcontext
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scopemill.deploy.templates_cli import templates_app
from scopemill.proto.errors import InputError, ScopemillError, Stopped

app = typer.Typer(help="Mill a language model's activations into sparse autoencoders.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False)  # fmt: skip
app.add_typer(templates_app, name="templates")
console = Console(width=None if sys.stdout.isatty() else 140)  # a log is not a narrow terminal
SweepFile = Annotated[str, typer.Argument(metavar="SWEEP.yaml", help="The sweep file: a path or any fsspec URL.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace a field, such as train.tokens=1000000.")]
EXIT_ERROR, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


@app.command()
def sweep(file: SweepFile, set: Overrides = [], dry_run: Annotated[bool, typer.Option(help="Say what would be done.")] = False):  # noqa: A002, B006
    """Harvest, train, evaluate and report; what is committed is not done again."""
    if dry_run:
        return _print_facts(_plan(file, set).facts())
    _drive(file, set, ("harvest", "train", "evaluate"))


@app.command()
def harvest(file: SweepFile, set: Overrides = []):  # noqa: A002, B006
    """Only harvest the activation dataset of a sweep."""
    _drive(file, set, ("harvest",))


@app.command()
def evaluate(file: SweepFile, set: Overrides = []):  # noqa: A002, B006
    """Only evaluate the checkpoints that are there, and report."""
    _drive(file, set, ("evaluate",))


@app.command()
def status(file: SweepFile, set: Overrides = []):  # noqa: A002, B006
    """What of a sweep is done, read from its bucket."""
    from scopemill.deploy.status import read_status, status_table

    console.print(status_table(read_status(_plan(file, set))))


@app.command()
def pull(
    bucket: Annotated[str, typer.Argument(help="The bucket: a folder or any fsspec URL.")],
    folder: Annotated[str, typer.Argument(help="Where the SAEs go.")],
    match: Annotated[str, typer.Option(help="Which: <model>/<hook>/width_<w>/<architecture>/<id>, with * and ?.")] = "*",
    format: Annotated[str, typer.Option(help="saelens or gemma-scope; docs/formats.md says what each can hold.")] = "saelens",  # noqa: A002
):
    """Copy finished SAEs out of a bucket, as folders that SAELens loads or as Gemma Scope's files."""
    from scopemill.deploy.publish import pull as copy

    for saved in copy(bucket, folder, match, format):
        console.print(f"{folder}/{saved}", highlight=False, soft_wrap=True)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="An SAE's folder, of any format that is read: a path or any fsspec URL.")],
    destination: Annotated[str, typer.Argument(help="The folder to write; for Gemma Scope its path says what the SAE is.")],
    to: Annotated[str, typer.Option(help="saelens, gemma-scope or gemma-scope-2; docs/formats.md says what each can hold.")],
):
    """Convert one SAE's folder from one format into another."""
    from scopemill.deploy.conversion import convert as convert_folder

    convert_folder(source, destination, to)
    console.print(destination, highlight=False, soft_wrap=True)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A Gemma Scope tree: hf://google/gemma-scope-2b-pt-res, a copy of it, any fsspec URL.")],
    bucket: Annotated[str, typer.Argument(help="The bucket or folder that the SAEs go to.")],
    match: Annotated[str, typer.Option(help="Which: layer_<l>/width_<w>/average_l0_<n>, with * and ?.")] = "*",
):
    """Convert a Gemma Scope tree into a bucket's folders, which SAELens loads; what is there is not done again."""
    from scopemill.deploy.conversion import import_tree
    from scopemill.deploy.progress import Reporter

    for root in import_tree(source, bucket, match, Reporter(console)):
        console.print(f"{bucket}/{root}", highlight=False, soft_wrap=True)


@app.command()
def demo(set: Overrides = []):  # noqa: A002, B006
    """The whole mill on this machine: a small model that the package carries, on the text of Python's own library."""
    from scopemill.deploy.demo.run import write_sweep

    _drive(write_sweep(), set, ("harvest", "train", "evaluate"))


def _plan(file: str, overrides: list[str]):
    # Imported here: --help and a file that does not parse should not wait for torch.
    from scopemill.deploy.sweep import load_sweep

    config = load_sweep(file, overrides)
    from scopemill.deploy.plan import plan_sweep

    return plan_sweep(config)


def _drive(file: str, overrides: list[str], phases: tuple[str, ...]) -> None:
    plan = _plan(file, overrides)
    from scopemill.deploy.cluster import cluster
    from scopemill.deploy.driver import SweepDriver
    from scopemill.deploy.progress import Reporter

    reporter = Reporter(console)
    driver = SweepDriver(plan, reporter)
    reporter.say(f"sweep {plan.config.name}: {len(plan.saes)} SAEs at {len(plan.hooks)} hooks; metrics listed in {driver.targets.path}")
    try:
        with cluster() if driver.has_work(phases) else nullcontext():
            for phase in phases:
                getattr(driver, phase)()
    except KeyboardInterrupt as interrupt:
        command = "scopemill " + " ".join(sys.argv[1:])
        raise Stopped(f"stopped; everything committed is kept. To continue: {command}") from interrupt
    if "evaluate" in phases:
        _report(plan, reporter)


def _report(plan, reporter) -> None:
    from scopemill.deploy.publish import publish
    from scopemill.deploy.status import read_status, status_table

    reporter.say("writing the table, plots and report")
    places = publish(plan)
    console.print(status_table(read_status(plan)))
    _print_facts(places)


def _print_facts(facts: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(f"[bold]{name}[/bold]", fact)
    console.print(table, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command; an error of ours becomes its sentence on stderr and an exit code."""
    # `ray job stop` and `kill` drain as Ctrl-C does; a shell's background jobs start with Ctrl-C's signal ignored.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)
    try:
        app()
    except ScopemillError as error:
        Console(stderr=True).print(Text.assemble(("error ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_INTERRUPTED if isinstance(error, Stopped) else EXIT_ERROR)
