"""Bring SAEs in and out: the commands ``scopemill pull``, ``convert`` and ``import``."""

from typing import Annotated

import typer

from scopemill.deploy.cli.options import BucketUrl, Match, console, print_line


def pull(
    bucket: BucketUrl,
    folder: Annotated[str, typer.Argument(help="The folder or URL to copy the SAEs to.")],
    match: Match = "*",
    format: Annotated[str, typer.Option(help="saelens or gemma-scope; docs/formats.md says what each can hold.")] = "saelens",  # noqa: A002
) -> None:
    """Copy finished SAEs out of a bucket, in SAELens' or Gemma Scope's format."""
    from scopemill.deploy.catalog.pull import pull as copy

    for saved in copy(bucket, folder, match, format):
        print_line(f"{folder}/{saved}")


def convert(
    source: Annotated[str, typer.Argument(help="An SAE's folder, in any format that can be read: a path or any fsspec URL.")],
    destination: Annotated[str, typer.Argument(help="The folder to write; for Gemma Scope its path describes the SAE.")],
    to: Annotated[str, typer.Option(help="saelens, gemma-scope or gemma-scope-2; docs/formats.md says what each can hold.")],
) -> None:
    """Convert one SAE's folder from one format into another."""
    from scopemill.deploy.catalog.conversion import convert as convert_folder

    convert_folder(source, destination, to)
    print_line(destination)


def import_(
    source: Annotated[str, typer.Argument(help="A Gemma Scope tree: hf://google/gemma-scope-2b-pt-res, a copy of it, any fsspec URL.")],
    bucket: Annotated[str, typer.Argument(help="The bucket or folder to import the SAEs into.")],
    match: Annotated[str, typer.Option(help="Only SAEs whose layer_<l>/width_<w>/average_l0_<n> matches; * and ? are wildcards.")] = "*",
) -> None:
    """Convert a Gemma Scope tree into a bucket's folders, which SAELens loads.

    SAEs already imported are skipped.
    """
    from scopemill.deploy.catalog.conversion import import_tree
    from scopemill.deploy.progress import Reporter

    for root in import_tree(source, bucket, match, Reporter(console)):
        print_line(f"{bucket}/{root}")
