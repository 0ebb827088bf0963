"""Lay an interpretation report out as Markdown, as people attach it to papers."""

from collections.abc import Iterator, Sequence
from typing import Any

from scopemill.deploy.catalog.interpretation import SORTS
from scopemill.deploy.catalog.latents import escaped, quoted

BAR = 40  # letters of the longest bar
WORDS = {
    "l0": "L0", "fvu": "FVU", "d_in": "width of the input", "loss_clean": "loss of the model", "loss_spliced": "loss with the SAE",
    "loss_zero_ablated": "loss with zeros", "loss_mean_ablated": "loss with the mean", "delta_loss": "delta loss",
    "recovered_zero": "loss recovered, against zeros", "recovered_mean": "loss recovered, against the mean",
    "dead_fraction": "dead share on the held-out tokens", "decoder_cosine": "cosine between decoder rows, root mean square",
    "dead_share": "dead share", "frequent": "firing on more than a tenth of the rows", "clustered": "latents in clusters",
    "mean_token_entropy": "mean entropy of the tokens, bits", "sae": "SAE", "weights_digest": "digest of the weights",
}  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """Return a report as Markdown; every line stands for itself, so versions can be compared."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    identity, quality = report["identity"], dict(report["quality"])
    probes = quality.pop("probes", None)
    yield f"# Interpretation of {escaped(str(identity['sae']).rpartition('saes/')[2])}"
    yield from _section("Identity", _facts(identity))
    yield from _section("Training", _facts(report["training"]) or ["Nothing is known of it."])
    yield from _section("Quality", _facts(quality) or ["Not measured."])
    if probes:
        yield from _section("Probes", list(_probes(probes)))
    yield from _section("Latents", _facts({k: v for k, v in report["latents"].items() if not k.startswith("density")}))
    yield from _section("Density", list(_densities(report["latents"])))
    yield from _section("Labels and output scores", list(_scores(report)))
    for name, latents in report["sorts"].items():
        yield from _section(SORTS[name].title, list(_table(latents, report["shown"])))
    yield from _section("Contexts", [])
    for latent, shown in report["shown"].items():
        yield from _latent(latent, shown)
    made = report["evidence"]
    yield from _section(
        "How the evidence was made", _facts(made | {"settings": ", ".join(f"{k} {v}" for k, v in made["settings"].items())})
    )
    yield from _section("Caveats", [f"- {escaped(caveat)}" for caveat in report["caveats"]])


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield from lines


def _facts(facts: dict[str, Any]) -> list[str]:
    known = {name: value for name, value in facts.items() if value not in (None, "", [])}
    if not known:
        return []
    named = [f"| {WORDS.get(name, name.replace('_', ' '))} | {_cell(value)} |" for name, value in known.items()]
    return ["| | |", "|---|---|", *named]


def _probes(probes: dict[str, Any]) -> Iterator[str]:
    yield f"Mean AUC over {probes['tasks']} tasks; a dense probe of the activation reaches {probes['residual']:.3f}."
    owners = list(next(iter(probes["auc"].values())))
    yield from ("", f"| latents | {' | '.join(owners)} |", f"|---{'|---' * len(owners)}|")
    for k, by_owner in probes["auc"].items():
        yield f"| {k} | {' | '.join(f'{by_owner[owner]:.3f}' for owner in owners)} |"


def _densities(latents: dict[str, Any]) -> Iterator[str]:
    """Yield a histogram of the latents that fired, as bars of text."""
    bins = latents["density_histogram"]
    if not bins:
        yield "No latent fired."
        return
    quartiles = ", ".join(f"{value:.2e}" for value in latents["density_quartiles"])
    yield f"Share of rows on which a latent fires; quartiles of those that fire: {quartiles}."
    yield from ("", "```text")
    most = max(bin["latents"] for bin in bins)
    for bin in bins:
        bar = "█" * -(-BAR * bin["latents"] // most)
        yield f"{bin['from']:8.1e} to {bin['to']:7.1e} {bin['latents']:8,d} {bar}".rstrip()
    yield "```"


def _scores(report: dict[str, Any]) -> Iterator[str]:
    labels, output = report["labels"], report["output_scores"]
    if labels["latents"]:
        mean = f", mean score {labels['mean_score']:.3f} over {labels['scored']:,}" if labels["scored"] else ""
        yield f"- labels: {labels['latents']:,} of the latents ({labels['share']:.1%}){mean}"
    else:
        yield "- labels: none"
    if output:
        yield (
            f"- output scores: {output['latents']:,} latents, mean {output['mean_score']:.3f}; of a random direction "
            f"{output['mean_random']:.3f}; above the random direction {output['above_random']:.1%}"
        )
    else:
        yield "- output scores: not measured"


def _table(latents: Sequence[int], shown: dict[int, dict[str, Any]]) -> Iterator[str]:
    """Yield listed latents as a table, with the scores that one of them has."""
    rows = [shown[latent] for latent in latents]
    scores = [name for name in ("label_score", "output_score") if any(row[name] is not None for row in rows)]
    labels = ["label"] if any(row["label"] for row in rows) else []
    heads = ["latent", "density", "max", "most frequent token", "promotes", *labels, *(name.replace("_", " ") for name in scores)]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for latent, row in zip(latents, rows, strict=True):
        top = "" if row["top_token"] is None else f"{_quoted(row['top_token'])} {row['top_token_share']:.0%}"
        cells = [str(latent), f"{row['density']:.2e}", f"{row['max']:.3g}", top, " ".join(map(_quoted, row["promotes"]))]
        cells += [escaped(" ".join((row["label"] or "").split())) for _ in labels]
        cells += ["" if row[name] is None else f"{row[name]:.3f}" for name in scores]
        yield f"| {' | '.join(cells)} |"


def _latent(latent: int, shown: dict[str, Any]) -> Iterator[str]:
    label = f": {escaped(' '.join(shown['label'].split()))}" if shown["label"] else ""
    yield from ("", f"### Latent {latent}{label}", "")
    for context in shown["contexts"]:
        yield f"- {context['activation']:.3f}: {context['markdown']}"


def _quoted(text: str) -> str:
    return escaped(quoted(text))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return escaped(", ".join(map(str, value)))
    return escaped(str(value))
