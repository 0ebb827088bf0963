"""The command line: ``scopemill sweep SWEEP.yaml`` and its parts."""

import json
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scopemill.deploy.cli.templates import templates_app
from scopemill.proto.errors import InputError, ScopemillError, Stopped

app = typer.Typer(help="Mill a language model's activations into sparse autoencoders.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False)  # fmt: skip
app.add_typer(templates_app, name="templates")
console = Console(width=None if sys.stdout.isatty() else 140)  # a log is not a narrow terminal
SweepFile = Annotated[str, typer.Argument(metavar="SWEEP.yaml", help="The sweep file: a path or any fsspec URL.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace a field, such as train.tokens=1000000.")]
Match = Annotated[str, typer.Option(help="Which: <model>/<hook>/width_<w>/<architecture>/<id>, with * and ?.")]
Address = Annotated[str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, such as http://head:8265.")]
EXIT_ERROR, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


@app.command()
def sweep(file: SweepFile, set: Overrides = [], dry_run: Annotated[bool, typer.Option(help="Say what would be done.")] = False):  # noqa: A002, B006
    """Harvest, train, evaluate and report; what is committed is not done again."""
    if dry_run:
        from scopemill.deploy.cost.summary import facts

        return _print_facts(facts(_plan(file, set)))
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
def plan(
    file: SweepFile,
    set: Overrides = [],  # noqa: A002, B006
    hardware: Annotated[str, typer.Option(help="The accelerator to count with: l4, l40s, a100, h100 or h200.")] = "h100",
    price: Annotated[float | None, typer.Option(help="Its price, in US dollars an hour.")] = None,
    utilisation: Annotated[float | None, typer.Option(help="The share of its peak that is reached.")] = None,
    bfloat16_tflops: Annotated[float | None, typer.Option(help="Its peak in bfloat16.")] = None,
    float32_tflops: Annotated[float | None, typer.Option(help="Its peak in float32.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Of its memory, in TB/s.")] = None,
):
    """Check everything, and say what a sweep would do and cost; nothing is started, and no weights are needed."""
    from scopemill.deploy.cost.estimate import cost_of, cost_tables, named_hardware

    given = {"price": price, "utilisation": utilisation, "bandwidth": bandwidth}
    accelerator = named_hardware(hardware, given | {"bfloat16_tflops": bfloat16_tflops, "float32_tflops": float32_tflops})
    planned = _plan(file, set)
    from scopemill.deploy.cost.sizes import model_size
    from scopemill.deploy.cost.summary import facts

    _print_facts(facts(planned) | {"hardware": f"{hardware}: {accelerator}"})
    console.print("", cost_tables(cost_of(planned, model_size(planned.config.model), accelerator), accelerator), sep="\n")


@app.command()
def submit(
    file: SweepFile,
    address: Address,
    set: Overrides = [],  # noqa: A002, B006
    env: Annotated[list[str], typer.Option(metavar="NAME", help="Pass on this variable of the environment; no credentials.")] = [],  # noqa: B006
    installed: Annotated[bool, typer.Option(help="The cluster's image has Scopemill: send the sweep file alone.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow the log until the sweep ends.")] = True,
):
    """Run a sweep as a job of a Ray cluster; submitted again, it goes on where it was."""
    from scopemill.deploy.cluster.jobs import Jobs, forwarded
    from scopemill.deploy.plan.sweep_file import load_sweep

    config, jobs = load_sweep(file, set).located(), Jobs(address)
    jobs.submit(config, forwarded(env), installed)
    console.print(f"submitted; scopemill logs and stop take {file} --address {address}", highlight=False, soft_wrap=True)
    if wait:
        _follow(jobs, config.name)


@app.command()
def logs(
    file: SweepFile,
    address: Address,
    follow: Annotated[bool, typer.Option(help="Stay until the sweep ends.")] = False,
):
    """What a submitted sweep has said."""
    from scopemill.deploy.cluster.jobs import Jobs
    from scopemill.deploy.plan.sweep_file import load_sweep

    name, jobs = load_sweep(file).name, Jobs(address)
    if follow:
        return _follow(jobs, name)
    sys.stdout.write(jobs.logs(name))


@app.command()
def stop(file: SweepFile, address: Address):
    """End a submitted sweep in peace: trainers checkpoint first. Submit it again to go on."""
    from scopemill.deploy.cluster.jobs import Jobs
    from scopemill.deploy.plan.sweep_file import load_sweep

    name = load_sweep(file).name
    console.print("stopped; everything committed is kept" if Jobs(address).stop(name) else f"sweep {name} was not running")


@app.command()
def status(
    file: SweepFile,
    set: Overrides = [],  # noqa: A002, B006
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False,
    watch: Annotated[bool, typer.Option(help="Stay, and show it anew until every SAE is finished.")] = False,
):
    """What of a sweep is done, read from its bucket."""
    from scopemill.deploy.catalog import status as status_of

    planned = _plan(file, set)
    if watch:
        with suppress(KeyboardInterrupt):
            status_of.watch(planned, console)
    elif as_json:
        print(json.dumps(status_of.read_status(planned).to_json(), indent=1))
    else:
        console.print(status_of.status_table(status_of.read_status(planned)))


@app.command()
def ls(
    bucket: Annotated[str, typer.Argument(help="The bucket: a folder or any fsspec URL.")],
    match: Match = "*",
):
    """The finished SAEs of a bucket, with their quality, and those that were stopped early."""
    from scopemill.deploy.catalog.listing import finished_entries, finished_table, stopped_early

    console.print(finished_table(finished_entries(bucket, match)))
    for folder, why in stopped_early(bucket, match).items():
        console.print(f"stopped: {folder}, {why}", highlight=False, soft_wrap=True)


@app.command()
def pull(
    bucket: Annotated[str, typer.Argument(help="The bucket: a folder or any fsspec URL.")],
    folder: Annotated[str, typer.Argument(help="Where the SAEs go.")],
    match: Match = "*",
    format: Annotated[str, typer.Option(help="saelens or gemma-scope; docs/formats.md says what each can hold.")] = "saelens",  # noqa: A002
):
    """Copy finished SAEs out of a bucket, as folders that SAELens loads or as Gemma Scope's files."""
    from scopemill.deploy.catalog.pull import pull as copy

    for saved in copy(bucket, folder, match, format):
        console.print(f"{folder}/{saved}", highlight=False, soft_wrap=True)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="An SAE's folder, of any format that is read: a path or any fsspec URL.")],
    destination: Annotated[str, typer.Argument(help="The folder to write; for Gemma Scope its path says what the SAE is.")],
    to: Annotated[str, typer.Option(help="saelens, gemma-scope or gemma-scope-2; docs/formats.md says what each can hold.")],
):
    """Convert one SAE's folder from one format into another."""
    from scopemill.deploy.catalog.conversion import convert as convert_folder

    convert_folder(source, destination, to)
    console.print(destination, highlight=False, soft_wrap=True)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A Gemma Scope tree: hf://google/gemma-scope-2b-pt-res, a copy of it, any fsspec URL.")],
    bucket: Annotated[str, typer.Argument(help="The bucket or folder that the SAEs go to.")],
    match: Annotated[str, typer.Option(help="Which: layer_<l>/width_<w>/average_l0_<n>, with * and ?.")] = "*",
):
    """Convert a Gemma Scope tree into a bucket's folders, which SAELens loads; what is there is not done again."""
    from scopemill.deploy.catalog.conversion import import_tree
    from scopemill.deploy.progress import Reporter

    for root in import_tree(source, bucket, match, Reporter(console)):
        console.print(f"{bucket}/{root}", highlight=False, soft_wrap=True)


@app.command()
def clean(file: SweepFile, set: Overrides = [], dry_run: Annotated[bool, typer.Option(help="Only list it.")] = False):  # noqa: A002, B006
    """Remove what broken runs of a sweep left behind. Not while it runs: work that is not committed yet would go too."""
    from scopemill.deploy.catalog.clean import clean as remove

    found = remove(_plan(file, set), dry_run)
    for path in found:
        console.print(path, highlight=False, soft_wrap=True)
    console.print(f"{len(found)} objects {'would be' if dry_run else 'were'} removed", highlight=False)


@app.command()
def keys(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")]):
    """Make the keys that an activation server needs beyond one machine: give server.keys: DIR in the sweep file."""
    from scopemill.activation_server.keys import make_keys

    for path in make_keys(folder):
        console.print(str(path), highlight=False, soft_wrap=True)


@app.command()
def monitor(
    port: Annotated[int, typer.Option(help="Where Prometheus listens, on loopback.")] = 9090,
    targets: Annotated[
        str | None,
        typer.Option(metavar="FILE|URL", help="A sweep's file_sd, or http://<driver's node>:<metrics_port>/targets; else all sweeps here."),
    ] = None,
):
    """Run Prometheus, with our alerts, over the sweeps on this machine, or over one on a cluster."""
    from scopemill.deploy.monitoring.prometheus import config, prometheus
    from scopemill.proto.metrics import TARGETS

    folder = TARGETS.parent / "prometheus"
    watched = targets or f"{TARGETS}/*.json"
    if "://" not in watched:
        watched = str(Path(watched).absolute())
    with suppress(KeyboardInterrupt), prometheus(folder, config(watched), port) as (url, process):
        _print_facts({"Prometheus": url, "alerts": f"{url}/alerts", "sweeps": watched, "kept in": str(folder), "Ctrl-C": "ends it"})
        process.wait()
        raise ScopemillError(f"prometheus ended by itself; {folder}/prometheus.log says why")


@app.command()
def demo(set: Overrides = []):  # noqa: A002, B006
    """The whole mill on this machine: a small model that the package carries, on the text of Python's own library."""
    from scopemill.deploy.demo.run import write_sweep

    _drive(write_sweep(), set, ("harvest", "train", "evaluate"))


def _plan(file: str, overrides: list[str]):
    # Imported here: --help and a file that does not parse should not wait for torch.
    from scopemill.deploy.plan.sweep_file import load_sweep

    config = load_sweep(file, overrides)
    from scopemill.deploy.plan.sweep_plan import plan_sweep

    return plan_sweep(config)


def _drive(file: str, overrides: list[str], phases: tuple[str, ...]) -> None:
    plan = _plan(file, overrides)
    from scopemill.deploy.cluster.ray_cluster import cluster
    from scopemill.deploy.orchestrator.driver import SweepDriver
    from scopemill.deploy.progress import Reporter

    reporter = Reporter(console)
    driver = SweepDriver(plan, reporter)
    reporter.say(f"sweep {plan.config.name}: {len(plan.saes)} SAEs at {len(plan.hooks)} hooks")
    try:
        with ExitStack() as stack:
            if driver.has_work(phases):
                stack.enter_context(cluster())
                _heed_signals()  # Ray has just put handlers of its own in their place
                driver.check_nodes(phases)
                driver.check_room(phases)
                reporter.say(f"metrics are listed in {stack.enter_context(driver.targets).places}")
            for phase in phases:
                getattr(driver, phase)()
    except KeyboardInterrupt as interrupt:
        command = "scopemill " + " ".join(sys.argv[1:])
        raise Stopped(f"stopped; everything committed is kept. To continue: {command}") from interrupt
    if "evaluate" in phases:
        _report(plan, reporter)


def _follow(jobs, sweep: str) -> None:
    try:
        jobs.follow(sweep, sys.stdout.write)
    except KeyboardInterrupt as interrupt:
        raise Stopped(f"sweep {sweep} goes on without us; scopemill logs shows it, and scopemill stop ends it") from interrupt


def _report(plan, reporter) -> None:
    from scopemill.deploy.catalog.publish import publish
    from scopemill.deploy.catalog.status import read_status, status_table

    reporter.say("writing the table, plots and report")
    places = publish(plan)
    console.print(status_table(read_status(plan)))
    _print_facts(places)


def _print_facts(facts: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(f"[bold]{name}[/bold]", fact)
    console.print(table, highlight=False, soft_wrap=True)


def _heed_signals() -> None:
    """`ray job stop` and `kill` drain as Ctrl-C does; a shell's background jobs start with Ctrl-C's signal ignored."""
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)


def main() -> None:
    """Run the command; an error of ours becomes its sentence on stderr and an exit code."""
    _heed_signals()
    try:
        app()
    except ScopemillError as error:
        Console(stderr=True).print(Text.assemble(("error ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_INTERRUPTED if isinstance(error, Stopped) else EXIT_ERROR)
