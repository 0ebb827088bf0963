"""Label latents: the command ``scopemill label``."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scopemill.deploy.cli.evidence import AsJson, SaeFolder, evidence_at
from scopemill.deploy.cli.options import console, print_line
from scopemill.proto.errors import InputError, PartlyFailed

if TYPE_CHECKING:
    from scopemill.evaluator.evidence.reader import Evidence
    from scopemill.evaluator.labels.labeller import Labelled, LabelSettings


def label(
    sae: SaeFolder,
    latents: Annotated[str | None, typer.Option(help="The latents to label: 1,5,10-20, or all that fired.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Instead: the first so many latents, sorted as by scopemill latents.")] = None,
    by: Annotated[str, typer.Option(help="What --top sorts by, the largest first: density, max, mean, ...")] = "density",
    endpoint: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible service, such as http://127.0.0.1:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name at the endpoint.")] = None,
    methods: Annotated[str, typer.Option(help="How labels are scored.")] = "detection,fuzzing,intruder",
    contexts: Annotated[int, typer.Option(min=2, max=100, help="Contexts of each kind to score a label on.")] = 10,
    shown: Annotated[int, typer.Option(min=2, max=100, help="Contexts to write a label from.")] = 20,
    texts: Annotated[int, typer.Option(min=1, max=20, help="Texts that one request has to judge; small models need 1.")] = 5,
    budget: Annotated[int | None, typer.Option(min=0, help="The most requests to send. Default: any number.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests under way at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a reply.")] = 60.0,
    patience: Annotated[float, typer.Option(min=0, help="Seconds for which a request is retried.")] = 120.0,
    from_: Annotated[
        list[str], typer.Option("--from", help="Take labels from a CSV file (latent,label,score) or Neuronpedia's explanations.")
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Label latents by a language model, and score each label on other documents.

    The key of the endpoint is read from the environment variable SCOPEMILL_LABEL_KEY. A second run sends no request for what is done.
    """
    if from_:
        _take(evidence_at(sae), from_)
        return
    if endpoint is None or model is None:
        raise InputError("name a service with --endpoint and --model, or a file of labels with --from")
    from scopemill.evaluator.labels.labeller import LabelSettings

    settings = LabelSettings(model, _methods(methods), shown, contexts, texts)
    evidence = evidence_at(sae)
    wanted = _wanted(evidence, latents, top, by)
    options = {"at_once": concurrency, "budget": budget, "timeout": timeout, "patience": patience}
    result, counted = _label(evidence, wanted, settings, endpoint, options, quiet=as_json)
    if as_json:
        print(json.dumps({"labels": list(result.rows.values()), "not_done": result.reasons, **counted, "file": result.place}, indent=1))
    else:
        _show(result)
        print_line(f"{counted['requests']:,} requests sent, {counted['cached']:,} answers were there already")
    if result.stopped:
        done = len(wanted) - len(result.reasons)
        raise PartlyFailed(f"{result.stopped}; {done} of {len(wanted)} latents have a label with all its scores, and all answers are kept")


def _label(
    evidence: "Evidence", wanted: list[int], settings: "LabelSettings", url: str, options: dict[str, Any], quiet: bool
) -> "tuple[Labelled, dict[str, int]]":
    from scopemill.evaluator.labels.asking import Asker
    from scopemill.evaluator.labels.endpoint import Endpoint
    from scopemill.evaluator.labels.labeller import Labeller

    service = Endpoint(url, settings.model, **options)
    asker = Asker(service, evidence.bucket, evidence.layout)

    def told(done: int) -> None:
        if not quiet:
            print_line(f"{done:,} of {len(wanted):,} latents, {service.sent:,} requests")

    try:
        result = Labeller(evidence, asker, settings).label(wanted, told)
    finally:
        asker.close()
    return result, {"requests": service.sent, "cached": asker.cached}


def _methods(text: str) -> Any:
    from scopemill.evaluator.labels.scoring import METHODS

    named = [name.strip() for name in text.split(",") if name.strip()]
    if not named or (wrong := [name for name in named if name not in METHODS]):
        raise InputError(f"--methods {(wrong if named else [''])[0]!r} is no method: choose from {', '.join(METHODS)}")
    return tuple(method for method in METHODS if method in named)


def _wanted(evidence: "Evidence", latents: str | None, top: int | None, by: str) -> list[int]:
    """Return the latents to label, each once."""
    from scopemill.deploy.catalog.latents import listed

    if (latents is None) == (top is None):
        raise InputError("say which latents to label, by either --latents (1,5,10-20 or all) or --top")
    if top is not None:
        return [row["latent"] for row in listed(evidence, by, "*", False, False)[:top]]
    if latents == "all":
        return [row["latent"] for row in listed(evidence, "latent", "*", True, False)]
    chosen: dict[int, None] = {}
    for part in str(latents).split(","):
        low, _, high = part.strip().partition("-")
        if not low.isdecimal() or not (high or low).isdecimal() or int(high or low) < int(low):
            raise InputError(f"--latents {latents!r}: {part.strip()!r} is neither a latent nor a range of latents such as 10-20")
        evidence.check(int(high or low))
        chosen |= dict.fromkeys(range(int(low), int(high or low) + 1))
    return list(chosen)


def _take(evidence: "Evidence", files: list[str]) -> None:
    """Write the labels of files beside the evidence."""
    from scopemill.evaluator.labels.files import label_file, write_labels
    from scopemill.evaluator.labels.imported import read_rows

    rows = read_rows(files, evidence.record)
    place = write_labels(evidence, label_file({"rows": rows}), rows, {"from": [file.rpartition("/")[2] for file in files]})
    print_line(f"{len(rows):,} labels of {len({row['latent'] for row in rows}):,} latents: {place}")


def _show(result: "Labelled") -> None:
    from rich.table import Table
    from rich.text import Text

    figures = ("score", "detection", "detection_nearest", "detection_shuffled", "fuzzing", "fuzzing_nearest", "fuzzing_shuffled",
               "intruder", "intruder_nearest")  # fmt: skip
    shown = [name for name in figures if any(row.get(name) is not None for row in result.rows.values())]
    table = Table(box=None, pad_edge=False)
    for name in ("latent", *shown):
        table.add_column(name.replace("_", "\n"), justify="right")
    table.add_column("label", overflow="fold")
    for row in result.rows.values():
        numbers = ("–" if row.get(name) is None else f"{row[name]:.2f}" for name in shown)
        table.add_row(str(row["latent"]), *numbers, Text(row["label"]))
    if result.rows:
        console.print(table, highlight=False)
    if result.reasons:
        left = Table(title=Text("not done"), title_justify="left", box=None, pad_edge=False)
        left.add_column("latent", justify="right")
        left.add_column("why", overflow="fold")
        for latent, reason in result.reasons.items():
            left.add_row(str(latent), Text(reason))
        console.print(left, highlight=False)
