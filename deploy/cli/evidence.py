"""Find out and show what latents mean: the commands ``scopemill evidence``, ``latent``, ``latents`` and ``search``.

Those that only read evidence wait for neither torch, ray nor transformers.
"""

import json
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from scopemill.deploy.cli.options import (
    CorpusColumn,
    CorpusFormat,
    Overrides,
    SweepOrSaes,
    console,
    is_sweep,
    plan_of,
    print_line,
    record_of,
)
from scopemill.proto.errors import InputError

if TYPE_CHECKING:
    from scopemill.deploy.orchestrator.evidence import Making
    from scopemill.evaluator.evidence.reader import Evidence

SaeFolder = Annotated[str, typer.Argument(metavar="SAE", help="A finished SAE's folder: a path or any fsspec URL.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Model = Annotated[str | None, typer.Option(help="The language model: a Hugging Face id or a local folder.")]


def evidence(
    places: SweepOrSaes,
    model: Model = None,
    corpus: Annotated[
        str | None, typer.Option(help="For SAE folders: the text, a file, folder or glob; for hub a data set's name.")
    ] = None,
    format: CorpusFormat = "jsonl",  # noqa: A002
    column: CorpusColumn = "text",
    context_length: Annotated[int, typer.Option(min=2, help="For SAE folders: tokens of a sequence.")] = 128,
    sequences: Annotated[int, typer.Option(min=1, help="For SAE folders: the most sequences to run.")] = 8192,
    output_scores: Annotated[
        bool, typer.Option("--output-scores", help="Instead: score what each latent of SAEs with evidence makes the model say.")
    ] = False,
    amount: Annotated[float, typer.Option(min=0, help="Of --output-scores: how far to raise, in largest activations.")] = 2.0,
    set: Overrides = [],  # noqa: A002, B006
) -> None:
    """Find out what every latent means: contexts, statistics, output tokens, neighbours.

    From a sweep's shards, or by the live model on a text. What is made is not made again.
    """
    if output_scores:
        of_sweep = is_sweep(places)
        for folder in _folders(places[0], set) if of_sweep else places:
            _score(folder, model, amount)
        return
    from scopemill.deploy.orchestrator import evidence as phase
    from scopemill.evaluator.config import EvidenceConfig

    if is_sweep(places):
        plan = plan_of(places[0], set)
        config = plan.config.evidence or EvidenceConfig.model_validate({})
        work = phase.evidence_to_make(plan.bucket, plan.record, plan.read_state(), config, plan.config.model.dtype, read=True)
        _make(plan.config.name, phase.Making(work, plan.config.model, plan.card, config))
        return
    if model is None or corpus is None:
        raise InputError("SAE folders need --model and --corpus: the text is run through the live model")
    making = phase.from_text(places, model, {"source": corpus, "format": format, "column": column}, context_length, sequences, set)
    _make("evidence", making)


def _score(folder: str, model: str | None, amount: float) -> None:
    """Score the output of an SAE's latents, and say how many do more than a random direction."""
    from scopemill.evaluator.steering.all_scores import score_latents
    from scopemill.harvester.config import named_model

    found = evidence_at(folder)

    def told(done: int, of: int) -> None:
        print_line(f"{done:,} of {of:,} latents")

    scores = score_latents(found, folder, named_model(model or found.record.model_place), amount, told)
    better = sum(own > random for own, random in scores.values())
    share = f", {better / len(scores):.1%}" if scores else ""
    print_line(f"{folder}: {better:,} of {len(scores):,} latents score above a random direction of their norm{share}")


def _make(name: str, making: "Making") -> None:
    from scopemill.deploy.cli.run import heed_signals
    from scopemill.deploy.cluster.ray_cluster import check_place, cluster
    from scopemill.deploy.cluster.scrape_targets import Targets
    from scopemill.deploy.orchestrator.evidence import make_evidence
    from scopemill.deploy.progress import Reporter
    from scopemill.proto import metrics

    if not any(jobs for _, jobs in making.work):
        print_line("every finished SAE has its evidence")
        return
    with ExitStack() as stack:
        stack.enter_context(cluster())
        heed_signals()
        check_place("evidence", making.config)
        targets = stack.enter_context(Targets(metrics.targets_folder() / f"{name}.json", name, None))
        for folder in make_evidence(making.work, making.model, making.card, making.config, targets, Reporter(console)):
            print_line(folder)


def latent(
    sae: SaeFolder,
    latent: Annotated[int, typer.Argument(help="The latent's number.")],
    contexts: Annotated[int, typer.Option(min=1, help="The most contexts of each section.")] = 6,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Show one latent: its contexts with the activation as colour, and all that is known."""
    from scopemill.deploy.catalog import latents as of

    found = evidence_at(sae)
    if as_json:
        print(json.dumps(of.facts_of(found, latent), indent=1))
    elif as_markdown:
        print(of.markdown(found, latent, contexts), end="")
    else:
        console.print(of.page(found, latent, contexts), highlight=False, soft_wrap=True)


def latents(
    sae: SaeFolder,
    sort: Annotated[str, typer.Option(help="latent, density, max, mean, decoder_norm, cluster, label_score or output_score.")] = "density",
    label: Annotated[str, typer.Option(help="Only latents whose label matches; * and ? are wildcards.")] = "*",
    most: Annotated[int, typer.Option(min=1, help="The most latents to list.")] = 50,
    ascending: Annotated[bool, typer.Option(help="Smallest first.")] = False,
    dead: Annotated[bool, typer.Option(help="Also latents that never fired.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the latents of an SAE from its evidence."""
    from scopemill.deploy.catalog import latents as of

    rows = of.listed(evidence_at(sae), sort, label, ascending, dead)[:most]
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        console.print(of.latents_table(rows), highlight=False)


def search(
    sae: SaeFolder,
    text: Annotated[str, typer.Argument(help="A text; with --words a word or some letters.")],
    words: Annotated[
        bool, typer.Option("--words", help="Look for the text in labels, promoted tokens and contexts; no model runs.")
    ] = False,
    model: Model = None,
    most: Annotated[int, typer.Option(min=1, help="The most latents to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Find the latents that fire on a text, or whose evidence holds a word."""
    from scopemill.deploy.catalog import latents as of

    if words:
        hits = sorted(of.with_word(evidence_at(sae), text), key=lambda hit: (-hit["contexts"], hit["latent"]))
    else:
        from scopemill.evaluator.evidence.firing import firing_on

        hits = firing_on(sae, text, model)
    hits = list(islice(hits, most))
    if as_json:
        print(json.dumps(hits, indent=1))
        return
    for hit in hits:
        where = (
            ", ".join(hit["found"])
            if words
            else f"max {hit['max']:.3f} on {json.dumps(hit['token'], ensure_ascii=False)}, {hit['tokens']} tokens"
        )
        print_line(f"{hit['latent']:8d}  {where}")
    if not hits:
        print_line("no latent")


def page(
    places: SweepOrSaes,
    out: Annotated[
        str | None,
        typer.Option(help="The folder to write: a path or any fsspec URL. Default: one beside each SAE's evidence."),
    ] = None,
    set: Overrides = [],  # noqa: A002, B006
) -> None:
    """Write a static page of latents, which opens from disk or any file server.

    It shows the SAEs that have evidence. Written again, it shows the labels and scores of now.
    """
    from scopemill.deploy.catalog.latents import evidence_by_name
    from scopemill.evaluator.latent_page.write import write_own_page, write_page
    from scopemill.proto.storage.bucket import Bucket

    folders = _folders(places[0], set) if is_sweep(places) else places
    saes = evidence_by_name(folders)
    if out is None:
        for _, evidence in saes:
            print_line(write_own_page(evidence))
        return
    target = Bucket(out)
    target.check_writable()
    write_page(target, saes)
    print_line(target.place("index.html"))


def _folders(file: str, overrides: list[str]) -> list[str]:
    """Return the folders of a sweep's SAEs."""
    bucket, record = record_of(file, overrides)
    return [bucket.place(sae.root) for sae in record.saes]


def evidence_at(sae: str) -> "Evidence":
    """Return the evidence in an SAE's folder."""
    from scopemill.evaluator.evidence.reader import evidence_of
    from scopemill.proto.storage.bucket import Bucket

    return evidence_of(Bucket(sae), "")
