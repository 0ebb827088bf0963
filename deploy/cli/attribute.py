"""Tell which latents an answer rests on: the command ``scopemill attribute``."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from scopemill.deploy.cli.evidence import AsJson, Model, SaeFolder
from scopemill.deploy.cli.options import console, print_line

if TYPE_CHECKING:
    from rich.table import Table

    from scopemill.evaluator.attribution.attribute import Share
    from scopemill.evaluator.attribution.attributor import Answer


def attribute(
    sae: SaeFolder,
    prompt: Annotated[str, typer.Option(help="The text before the answer.")],
    answer: Annotated[str, typer.Option(help="The answer, with its space, such as ' Paris': its first token's logit counts.")],
    against: Annotated[str | None, typer.Option(help="Another answer, whose logit is subtracted. Default: the mean of all logits.")] = None,
    model: Model = None,
    steps: Annotated[int, typer.Option(help="Points of the integrated gradient; 1: the gradient times the activation.")] = 1,
    most: Annotated[int, typer.Option(help="The most latents to list, and latents at one position.")] = 20,
    ablated: Annotated[int, typer.Option(help="Of these the first that are ablated exactly.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show which latents a logit difference rests on, by gradient and by exact ablation.

    What the SAE does not explain stays as it is.
    """
    from scopemill.deploy.cli.steer import model_of
    from scopemill.deploy.plan.sweep_file import parse_config
    from scopemill.evaluator.attribution.attributor import AttributionRequest, Attributor
    from scopemill.harvester.config import named_model

    fields = {"sae": sae, "prompt": prompt, "answer": answer, "against": against, "steps": steps, "most": most, "ablated": ablated}
    request = parse_config(AttributionRequest, fields, "attribute")
    found = Attributor(named_model(model or model_of(sae))).attribute(request)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        _show(found)


def _show(found: "Answer") -> None:
    result = found.attribution
    other = "the mean of all logits" if found.against is None else repr(found.against)
    print_line(f"logit of {found.answer!r} less {other}: {result.difference:+.4f}; with every latent ablated {result.without_latents:+.4f}")
    console.print(_table("latents, at all positions", result.latents, found.tokens), highlight=False)
    console.print(_table("latents at one position", result.places, found.tokens), highlight=False)


def _table(title: str, shares: "list[Share]", tokens: list[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    at_one = any(share.position is not None for share in shares)
    for column in ("latent", *(("position", "token") if at_one else ()), "activation", "gradient", "ablation"):
        table.add_column(column, justify="left" if column == "token" else "right")
    for share in shares:
        where = () if share.position is None else (str(share.position), json.dumps(tokens[share.position], ensure_ascii=False))
        ablation = "" if share.ablation is None else f"{share.ablation:+.4f}"
        cells = (str(share.latent), *where, f"{share.activation:.3f}", f"{share.gradient:+.4f}", ablation)
        table.add_row(*map(Text, cells))
    return table
