"""Bring SAEs in and out: the commands ``scopemill pull``, ``convert``, ``import``, ``export`` and ``report``."""

import json
from typing import Annotated

import typer

from scopemill.deploy.cli.options import BucketUrl, Match, console, print_line


def pull(
    bucket: BucketUrl,
    folder: Annotated[str, typer.Argument(help="The folder or URL to copy the SAEs to.")],
    match: Match = "*",
    format: Annotated[str, typer.Option(help="saelens or gemma-scope; docs/formats.md says what each can hold.")] = "saelens",  # noqa: A002
    with_evidence: Annotated[bool, typer.Option("--with-evidence", help="Also what every latent means, and its labels.")] = False,
) -> None:
    """Copy finished SAEs out of a bucket, in SAELens' or Gemma Scope's format."""
    from scopemill.deploy.catalog.pull import pull as copy

    for saved in copy(bucket, folder, match, format, with_evidence):
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


def export(
    saes: Annotated[list[str], typer.Argument(metavar="SAE...", help="Finished SAEs' folders: paths or any fsspec URLs.")],
    to: Annotated[str, typer.Option(help="saedashboard, neuronpedia, circuit-tracer or saebench; docs/exports.md describes each.")],
    out: Annotated[str, typer.Option(help="The folder to write: a path or any fsspec URL.")],
    set: Annotated[str, typer.Option(help="The name of the set of sources; from hook, architecture and width unless given.")] = "",  # noqa: A002
    suffix: Annotated[str | None, typer.Option(help="What tells SAEs of one set and layer apart; the folder's name unless given.")] = None,
    model: Annotated[str, typer.Option(help="The model's name there, in lower case; the evidence's model unless given.")] = "",
    layers: Annotated[int, typer.Option(min=0, help="Layers of the language model; from its configuration unless given.")] = 0,
    release: Annotated[str, typer.Option(help="The name of the release.")] = "",
    description: Annotated[str, typer.Option(help="One line about the SAEs.")] = "",
    creator: Annotated[str, typer.Option(help="Who made the SAEs.")] = "Scopemill",
    creator_id: Annotated[str, typer.Option(help="The creator's id in that Neuronpedia; its default user unless given.")] = "",
    link: Annotated[str, typer.Option(help="The address of a paper or page.")] = "",
    weights: Annotated[str, typer.Option(help="Where the weights are on Hugging Face: owner/repository/folder.")] = "",
    vectors: Annotated[bool, typer.Option(help="For neuronpedia: with each latent's decoder row, to steer without the SAE.")] = False,
    upload: Annotated[str, typer.Option(help="For neuronpedia: upload to this address; the key is in NEURONPEDIA_API_KEY.")] = "",
) -> None:
    """Write SAEs with their evidence as the files of another tool.

    With --upload the folder only records what is uploaded: the same command goes on where it ended.
    """
    from scopemill.deploy.catalog import exports
    from scopemill.deploy.progress import Reporter
    from scopemill.evaluator.exports.names import NEURONPEDIA_USER, Names
    from scopemill.proto.errors import InputError

    user = creator_id or NEURONPEDIA_USER
    names = Names(set, suffix, model, release, description, creator, user, link, weights, layers)
    if upload and to != "neuronpedia":
        raise InputError("--upload is for --to neuronpedia")
    places = (
        exports.upload(saes, upload, out, names, Reporter(console))
        if upload
        else exports.export(saes, to, out, names, Reporter(console), vectors)
    )
    for place in places:
        print_line(place)


def report(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="A finished SAE's folder with evidence: a path or any fsspec URL.")],
    out: Annotated[str, typer.Option(help="The folder to write interpretation.md and interpretation.json to.")],
    most: Annotated[int, typer.Option(min=1, help="Latents in each table.")] = 10,
    contexts: Annotated[int, typer.Option(min=0, help="Top contexts of each latent in a table.")] = 3,
) -> None:
    """Write what is known of an SAE and its latents, in Markdown and JSON.

    It is what people attach to a paper: identity, training, quality, latents, and how it was measured.
    """
    from scopemill.deploy.catalog.interpretation import interpretation
    from scopemill.deploy.catalog.interpretation_text import markdown
    from scopemill.proto.storage.bucket import Bucket

    target = Bucket(out)
    target.check_writable()
    known = interpretation(sae, most, contexts)
    for name, text in {
        "interpretation.json": json.dumps(known, indent=1, ensure_ascii=False),
        "interpretation.md": markdown(known),
    }.items():
        target.write(name, text.encode())
        print_line(target.place(name))
