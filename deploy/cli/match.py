"""Match latents across SAEs: the commands ``scopemill match`` and ``splits``."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from scopemill.deploy.cli.evidence import AsJson, Model, SaeFolder
from scopemill.deploy.cli.options import CorpusColumn, CorpusFormat, Overrides, SweepOrSaes, console, is_sweep, plan_of, print_line
from scopemill.deploy.console import plain_console


def match(
    places: SweepOrSaes,
    model: Model = None,
    corpus: Annotated[
        str | None, typer.Option(help="For SAE folders: the text to match firing on, a file, folder or glob; for hub a data set's name.")
    ] = None,
    format: CorpusFormat = "jsonl",  # noqa: A002
    column: CorpusColumn = "text",
    context_length: Annotated[int, typer.Option(min=2, help="For SAE folders: tokens of a sequence.")] = 128,
    rows: Annotated[int, typer.Option(min=0, help="Rows, about, on which firing is matched; 0: by decoder rows alone.")] = 2**16,
    as_json: AsJson = False,
    set: Overrides = [],  # noqa: A002, B006
) -> None:
    """Find each latent's twins in other SAEs, by decoder cosine and by firing together.

    Folders are matched each with each. Of a sweep, SAEs are matched that differ in one axis: seed, or the next layer, width, sparsity or
    architecture. Twins are written beside each SAE's evidence.
    """
    from scopemill.deploy.catalog.twins import similarity_table, stability, stability_lines
    from scopemill.deploy.orchestrator import matching
    from scopemill.deploy.progress import Reporter

    if is_sweep(places):
        prepared = matching.of_sweep(plan_of(places[0], set), rows)
    else:
        text = {"source": corpus, "format": format, "column": column} if corpus else None
        prepared = matching.of_folders(places, model, text, context_length, rows)
    compared = matching.run(prepared, Reporter(plain_console(stderr=as_json)))
    if as_json:
        print(json.dumps({"pairs": [asdict(one) for one in compared], "stability": stability(compared)}, indent=1))
        return
    console.print(similarity_table(compared), highlight=False)
    for line in stability_lines(compared):
        print_line(line)


def splits(
    sae: SaeFolder,
    latent: Annotated[int, typer.Argument(help="The latent's number.")],
    least: Annotated[float, typer.Option(min=0, max=1, help="The least score of a child with its parent.")] = 0.4,
    as_json: AsJson = False,
) -> None:
    """Show the latents of wider SAEs that a latent splits into, as a tree.

    scopemill match writes what is shown.
    """
    from scopemill.deploy.catalog.twins import drawn, splitting_tree

    tree = splitting_tree(sae, latent, least)
    if as_json:
        print(json.dumps(tree, indent=1))
    else:
        console.print(drawn(tree), highlight=False)
