"""Read what a bucket holds: the commands ``scopemill status`` and ``ls``.

Neither waits for torch, ray or transformers.
"""

import json
from contextlib import suppress
from typing import Annotated

import typer

from scopemill.deploy.cli.options import BucketUrl, Match, Overrides, SweepFile, console, print_line, record_of


def status(
    file: SweepFile,
    set: Overrides = [],  # noqa: A002, B006
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    watch: Annotated[bool, typer.Option(help="Refresh the table until every SAE is finished.")] = False,
) -> None:
    """Show how much of a sweep is done, as its bucket says."""
    bucket, record = record_of(file, set)
    from scopemill.deploy.catalog import status as status_of

    if watch:
        with suppress(KeyboardInterrupt):
            status_of.watch(bucket, record, console)
    elif as_json:
        print(json.dumps(status_of.read_status(bucket, record).to_json(), indent=1))
    else:
        console.print(status_of.status_table(status_of.read_status(bucket, record)))


def ls(bucket: BucketUrl, match: Match = "*") -> None:
    """List a bucket's finished SAEs with their quality, and those that were stopped early."""
    from scopemill.deploy.catalog.listing import finished_entries, finished_table, stopped_early

    console.print(finished_table(finished_entries(bucket, match)))
    for folder, why in stopped_early(bucket, match).items():
        print_line(f"stopped: {folder}, {why}")
