"""Fine-tune a finished SAE with its language model in the loop: the command ``scopemill finetune``."""

from typing import TYPE_CHECKING, Annotated

import typer

from scopemill.deploy.cli.options import console, print_line

if TYPE_CHECKING:
    from scopemill.trainer.config.finetuning import KlConfig

HELD_OUT = 64  # sequences


def finetune(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="Folder of a finished SAE in any readable format: a path or fsspec URL.")],
    model: Annotated[str, typer.Option(help="The language model: a Hugging Face id or a local folder.")],
    corpus: Annotated[str, typer.Option(help="The text: a file, folder or glob at any fsspec URL, or a dataset's name with --format hub.")],
    format: Annotated[str, typer.Option(help="The text's format: lines, files, jsonl, parquet or hub.")] = "jsonl",  # noqa: A002
    column: Annotated[str, typer.Option(help="The column that holds the text, for jsonl, parquet and hub.")] = "text",
    context_length: Annotated[int, typer.Option(help="Tokens in a sequence, with the BOS at its start.")] = 1024,
    held_out: Annotated[int, typer.Option(help="First sequences of the text, kept for the measurements before and after.")] = HELD_OUT,
    out: Annotated[str | None, typer.Option(help="Folder for the fine-tuned SAEs. Default: the SAE's parent folder.")] = None,
    set: Annotated[  # noqa: A002
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="A field of train.finetune.kl, such as tokens=4000000 or arms=[kl].")
    ] = [],  # noqa: B006
) -> None:
    """Fine-tune a finished SAE on the model's own predictions, and compare it with MSE alone.

    Idempotent: a second run continues, or shows what the first run brought.
    """
    from scopemill.deploy.plan.sweep_file import parse_config, parse_overrides
    from scopemill.trainer.config.finetuning import KlConfig

    config = parse_overrides(KlConfig, set, "--set")
    from functools import partial

    from scopemill.deploy.catalog.finetuned import finetuned_table
    from scopemill.deploy.cluster.ray_cluster import check_place, cluster
    from scopemill.deploy.cluster.scrape_targets import Targets
    from scopemill.deploy.orchestrator.finetuning import finetune_all
    from scopemill.deploy.progress import Reporter
    from scopemill.evaluator.fidelity.finetuned import FinetuneJob
    from scopemill.evaluator.fidelity.finetuner import held_out_text
    from scopemill.harvester.config import CorpusConfig, named_model
    from scopemill.harvester.language_model.describe import describe
    from scopemill.proto import metrics
    from scopemill.trainer.finetune.text import CorpusText
    from scopemill.trainer.formats import read_finished

    places = parse_config(CorpusConfig, {"source": corpus, "format": format, "column": column}, "--corpus")
    finished = read_finished(sae)  # before anything starts: a folder that is not an SAE is told at once
    lm, steps = named_model(model), _steps(config, context_length)
    card = describe(lm)
    text = CorpusText(lm, card, places, context_length, held_out)
    source = {"sae": finished.fingerprint, "model": card.fingerprint, "text": text.identity}
    parent, name = sae.rstrip("/").rpartition("/")[::2]
    target = out or parent or "."
    jobs = [FinetuneJob(f"{name}-{arm}", sae, target, f"{name}-{config.id(arm, source)}", arm) for arm in config.arms]
    reporter = Reporter(console)
    targets = Targets(metrics.targets_folder() / f"finetune-{name}.json", f"finetune-{name}", None)
    with cluster(), targets:
        check_place("finetune", config)
        evaluation = partial(held_out_text, text.held_out, card, config.sequences_per_forward)
        done = finetune_all(jobs, lm, card, config, text, evaluation, steps, targets, reporter)
    console.print(finetuned_table({job.name: next(one for one in done if one.arm == job.arm) for job in jobs}))
    for job in jobs:
        print_line(f"{target}/{job.root}")


def _steps(config: "KlConfig", context_length: int) -> int:
    from scopemill.proto.errors import InputError

    try:
        return config.steps(context_length)
    except ValueError as error:
        raise InputError(str(error)) from error
