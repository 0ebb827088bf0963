"""Measure what latents absorb of more general ones: the command ``scopemill absorption``."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from scopemill.deploy.cli.evidence import AsJson, Model
from scopemill.deploy.cli.options import CorpusColumn, CorpusFormat, Overrides, SweepOrSaes, console, is_sweep, plan_of, print_line
from scopemill.deploy.console import plain_console
from scopemill.proto.errors import InputError


def absorption(
    places: SweepOrSaes,
    model: Model = None,
    narrower: Annotated[
        str | None, typer.Option(help="Measure by the latents of this narrower SAE on a text (--corpus), and not by first letters.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="With --narrower: the text, a file, folder or glob; for hub a data set's name.")
    ] = None,
    format: CorpusFormat = "jsonl",  # noqa: A002
    column: CorpusColumn = "text",
    context_length: Annotated[int, typer.Option(min=2, help="With --narrower: tokens of a sequence.")] = 128,
    rows: Annotated[int, typer.Option(min=1, help="Rows, about, on which a narrower SAE's latents are looked for.")] = 2**15,
    as_json: AsJson = False,
    set: Overrides = [],  # noqa: A002, B006
) -> None:
    """Measure absorption and splitting: by the first letters of words, or by a narrower SAE.

    Of a sweep, both are measured, and its report is written again with them.
    """
    from scopemill.deploy.catalog.absorption import absorption_table
    from scopemill.deploy.orchestrator import absorption as phase
    from scopemill.deploy.orchestrator import matching
    from scopemill.deploy.progress import Reporter
    from scopemill.harvester.config import named_model

    reporter = Reporter(plain_console(stderr=as_json))
    if is_sweep(places):
        from scopemill.deploy.catalog.publish import publish

        plan = plan_of(places[0], set)
        measured = phase.of_sweep(plan, rows, reporter)
        publish(plan)
    elif narrower is not None:
        if model is None or corpus is None:
            raise InputError("--narrower needs --model and --corpus: both SAEs read the same text through the live model")
        text = {"source": corpus, "format": format, "column": column}
        both = [matching.of_folders([narrower, place], model, text, context_length, rows) for place in places]
        measured = [one for pair in both for one in phase.by_narrower(pair, reporter)]
    else:
        if model is None:
            raise InputError("SAE folders need --model: the model's own words are run through it")
        measured = phase.by_letters(places, named_model(model), reporter)
    if as_json:
        print(json.dumps([{"sae": folder} | asdict(record) for folder, record in measured], indent=1))
        return
    console.print(absorption_table(measured), highlight=False)
    for folder in dict.fromkeys(folder for folder, _ in measured):
        print_line(f"{folder}/evidence/absorption")
