"""Share arguments, the console and plans between commands.

Heavy imports wait until a command needs them.
"""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from scopemill.deploy.console import plain_console

if TYPE_CHECKING:
    from scopemill.deploy.plan.record import PlanRecord
    from scopemill.deploy.plan.sweep_plan import SweepPlan
    from scopemill.proto.storage.bucket import Bucket

console = plain_console()
SweepFile = Annotated[str, typer.Argument(metavar="SWEEP.yaml", help="The sweep file: a path or any fsspec URL.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace a field, such as train.tokens=1000000.")]
SweepOrSaes = Annotated[list[str], typer.Argument(metavar="SWEEP.yaml | SAE...", help="A sweep file, or folders of finished SAEs.")]
CorpusFormat = Annotated[str, typer.Option("--format", help="Of the corpus: lines, files, jsonl, parquet or hub.")]
CorpusColumn = Annotated[str, typer.Option("--column", help="Of the corpus: the column that holds the text.")]
BucketUrl = Annotated[str, typer.Argument(help="The bucket: a folder or any fsspec URL.")]
Match = Annotated[str, typer.Option(help="Only SAEs whose <model>/<hook>/width_<w>/<architecture>/<id> matches; * and ? are wildcards.")]
Wait = Annotated[bool, typer.Option(help="If another run of the sweep, or of its dataset, is at work, begin when that one has ended.")]
Address = Annotated[str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, such as http://head:8265.")]


def is_sweep(places: list[str]) -> bool:
    """Return True if the places are one sweep file, and not folders of SAEs."""
    return len(places) == 1 and places[0].endswith((".yaml", ".yml"))


def plan_of(file: str, overrides: list[str]) -> "SweepPlan":
    """Read, check and plan a sweep file."""
    from scopemill.deploy.plan.sweep_file import load_sweep

    config = load_sweep(file, overrides)  # before the next import, so that a mistyped field does not wait for torch
    from scopemill.deploy.plan.planner import plan_sweep

    return plan_sweep(config)


def record_of(file: str, overrides: list[str]) -> "tuple[Bucket, PlanRecord]":
    """Return a sweep's bucket and plan.

    The plan is the one that the sweep's last command recorded, else it is planned anew.
    """
    from scopemill.deploy.plan.record import read_plan
    from scopemill.deploy.plan.sweep_file import load_sweep
    from scopemill.proto.storage.bucket import Bucket

    config = load_sweep(file, overrides)
    bucket = Bucket(config.located().bucket)
    if record := read_plan(bucket, config):
        return bucket, record
    from scopemill.deploy.plan.planner import lay_out

    plan = lay_out(config)
    return plan.bucket, plan.record


def print_line(text: str) -> None:
    """Print one line as it is, without wrapping."""
    console.print(text, soft_wrap=True)


def print_facts(facts: dict[str, str]) -> None:
    """Print named facts as two columns."""
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(Text(name, "bold"), fact)
    console.print(table, soft_wrap=True)
