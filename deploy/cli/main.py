"""Assemble the command line, ``scopemill``: its commands by panel.

An error of ours ends a command with its sentence and an exit code.
"""

import sys
from collections.abc import Callable

import typer
from rich.text import Text

from scopemill.deploy.cli import (
    absorption,
    attribute,
    evidence,
    exchange,
    finetune,
    labels,
    look,
    match,
    operate,
    run,
    steer,
    studio,
    trainings,
)
from scopemill.deploy.cli.templates import templates_app
from scopemill.deploy.cli.truth import truth
from scopemill.deploy.console import plain_console
from scopemill.proto.errors import InputError, ScopemillError, Stopped

EXIT_ERROR, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Run": (run.sweep, run.plan, run.harvest, run.evaluate, run.submit, run.demo, finetune.finetune),
    "Look": (look.status, look.ls, truth, studio.studio),
    "Latents": (
        evidence.evidence,
        evidence.latent,
        evidence.latents,
        evidence.search,
        evidence.page,
        labels.label,
        match.match,
        match.splits,
        absorption.absorption,
        steer.steer,
        attribute.attribute,
    ),
    "Exchange": (exchange.pull, exchange.convert, exchange.import_, exchange.export, exchange.report),
    "Operate": (operate.logs, operate.stop, trainings.trainings, operate.clean, operate.keys, operate.monitor),
}

app = typer.Typer(help="Mill a language model's activations into sparse autoencoders.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False)  # fmt: skip
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__.rstrip("_"), rich_help_panel=panel)(command)
app.add_typer(templates_app, name="templates", rich_help_panel="Exchange")


def main() -> None:
    """Run the command and turn an error of ours into an exit code.

    The error's sentence goes to stderr.
    """
    run.heed_signals()
    try:
        app()
    except ScopemillError as error:
        plain_console(stderr=True).print(Text.assemble(("error ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_INTERRUPTED if isinstance(error, Stopped) else EXIT_ERROR)
