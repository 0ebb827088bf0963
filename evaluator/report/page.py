"""Render the sweep's report as one HTML page with its plots inside.

The page loads nothing from elsewhere.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from scopemill.evaluator.fidelity.results import Evaluation, Quality, Result, in_order, last_steps
from scopemill.evaluator.probes.scores import ProbeSummary
from scopemill.evaluator.report.export import to_svg
from scopemill.evaluator.report.fidelity_figure import fidelity_figure, frontiers
from scopemill.evaluator.report.frequency_figure import frequency_figure
from scopemill.evaluator.report.l0_advice import advice
from scopemill.evaluator.report.numbers import count, fraction, percent, signed, span
from scopemill.evaluator.report.training_figure import training_figure
from scopemill.proto.layout import width_label
from scopemill.trainer.training.history import Row

HALF_PAGE_INCHES = 6.5
QUALITY_NAMES: dict[Quality, str] = {"fvu": "FVU", "delta_loss": "\u0394 loss"}


def render_report(
    title: str,
    facts: dict[str, str],
    evaluations: list[Evaluation],
    histories: dict[str, list[Row]],
    finetuned: Sequence[Sequence[str]] = (),
    absorbed: Sequence[Sequence[str]] = (),
    pages: Mapping[str, str] = {},  # noqa: B006
) -> str:
    """Return the page as HTML.

    ``facts`` are shown unchanged under their names; ``histories`` are by SAE name. ``finetuned`` has a row for each fine-tuned SAE: name,
    delta loss, FVU and L0, each before and after. ``absorbed`` has a row for each measurement of absorption: name, features, what they are
    of, fraction, that of a random dictionary, share fully absorbed, main latents and their F1. ``pages`` has the addresses of pages of
    latents, by SAE folder.
    """
    results = in_order(e.result for e in evaluations)
    final = in_order(last_steps(results))
    kept = [e.kept_tokens for e in evaluations if e.kept_tokens is not None]
    return _ENVIRONMENT.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        tiles=_tiles(final),
        final=_final_rows(final, pages),
        browsed=bool(pages),
        finetuned=finetuned,
        absorbed=absorbed,
        probed=_probed_rows(evaluations, final),
        advice=advice(final),
        every=results,
        figures=_figures(evaluations, histories),
        filtered=bool(kept),
        kept_tokens=span(kept, lambda n: f"{n:,}"),
        evaluated_tokens=span([e.evaluated_tokens for e in evaluations], lambda n: f"{n:,}"),
        splices_special=sorted({bool(e.settings.get("splice_special", False)) for e in evaluations}),
        settings=sorted({json.dumps(e.settings, indent=2, sort_keys=True, default=str) for e in evaluations}),
    )


@dataclass(frozen=True)
class Tile:
    """Hold one headline number."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class FinalRow:
    """Compare a final checkpoint with the others of its hook."""

    result: Result
    opens_hook: bool
    best: set[Quality]  # the qualities in which this checkpoint is the hook's lowest
    frontier: list[str]  # names of the qualities on whose Pareto frontier this checkpoint lies
    page: str | None  # the address of the SAE's page of latents


@dataclass(frozen=True)
class ProbedRow:
    """Hold the probes of a final checkpoint."""

    result: Result
    probes: ProbeSummary


@dataclass(frozen=True)
class Plot:
    """Hold a plot with its heading and caption."""

    heading: str
    caption: str
    svg: Markup
    half: bool  # takes half of the page's width


def _tiles(final: list[Result]) -> list[Tile]:
    if not final:
        return []
    hooks = len({r.hook for r in final})
    tiles = [Tile("SAEs", f"{len(final):,}", f"at {hooks} hook{'s' if hooks > 1 else ''}")]
    if recovered := [r for r in final if math.isfinite(r.recovered_zero)]:
        best = max(recovered, key=lambda r: r.recovered_zero)
        tiles.append(Tile("Best loss recovered (zero)", percent(best.recovered_zero), _described(best)))
    if explained := [r for r in final if math.isfinite(r.fvu)]:
        best = min(explained, key=lambda r: r.fvu)
        tiles.append(Tile("Best FVU", fraction(best.fvu), _described(best)))
    clean = [r.loss_clean for r in final if math.isfinite(r.loss_clean)]
    if clean:
        detail = f"nats/token; perplexity {span([math.exp(c) for c in clean], lambda p: f'{p:.4g}')}"
        tiles.append(Tile("Clean loss of the language model", span(clean, lambda c: f"{c:.3f}"), detail))
    return tiles


def _described(r: Result) -> str:
    return f"{r.place}, {width_label(r.width)} {r.architecture}, L0 {count(r.l0)}"


def _final_rows(final: list[Result], pages: Mapping[str, str]) -> list[FinalRow]:
    on_frontier = {quality: {r for hook in frontiers(final, quality).values() for r in hook} for quality in QUALITY_NAMES}
    best = {quality: _lowest_per_hook(final, quality) for quality in QUALITY_NAMES}
    return [
        FinalRow(
            result=r,
            opens_hook=i > 0 and final[i - 1].hook != r.hook,
            best={quality for quality in QUALITY_NAMES if r in best[quality]},
            frontier=[name for quality, name in QUALITY_NAMES.items() if r in on_frontier[quality]],
            page=next((page for sae, page in pages.items() if r.path.startswith(f"{sae}/")), None),
        )
        for i, r in enumerate(final)
    ]


def _probed_rows(evaluations: list[Evaluation], final: list[Result]) -> list[ProbedRow]:
    """Return a row for each final checkpoint that was probed, in the table's order."""
    scores = {e.result: e.probes for e in evaluations if e.probes}
    return [ProbedRow(r, ProbeSummary.of(scores[r])) for r in final if r in scores]


def _lowest_per_hook(final: list[Result], quality: Quality) -> set[Result]:
    lowest: dict[str, Result] = {}
    for r in final:
        value = getattr(r, quality)
        if math.isfinite(value) and (r.hook not in lowest or value < getattr(lowest[r.hook], quality)):
            lowest[r.hook] = r
    return set(lowest.values())


def _figures(evaluations: list[Evaluation], histories: dict[str, list[Row]]) -> list[Plot]:
    results = [e.result for e in evaluations]
    plots: list[tuple[str, str, Callable[[], Figure]]] = []
    if evaluations:
        plots += [
            ("Reconstruction error against L0", _FVU_CAPTION, lambda: fidelity_figure(results, "fvu")),
            ("Language-model loss against L0", _DELTA_CAPTION, lambda: fidelity_figure(results, "delta_loss")),
            ("Firing frequencies of latents", _FREQUENCY_CAPTION, lambda: frequency_figure(evaluations)),
        ]
    if any(histories.values()):
        plots.append(("Training", _TRAINING_CAPTION, lambda: training_figure(histories)))
    return [_plot(heading, text, draw(), f"plot{i}-") for i, (heading, text, draw) in enumerate(plots)]


def _plot(heading: str, caption: str, figure: Figure, prefix: str) -> Plot:
    width = figure.get_size_inches()[0]
    return Plot(heading, caption, inline_svg(to_svg(figure), prefix), half=bool(width < HALF_PAGE_INCHES))


_FVU_CAPTION = (
    "Each panel is a hook, and each solid marker is the newest checkpoint of an SAE. Lower and further left is better. The dark line is "
    "the Pareto frontier: for every SAE off this line, an SAE on the line is at least as good in both L0 and FVU."
)
_DELTA_CAPTION = (
    "As above, for the cost to the language model. At 0 nats/token the model predicts as well with the SAE spliced in as without it."
)
_FREQUENCY_CAPTION = (
    "Share of an SAE's latents at each firing frequency, for its newest checkpoint. A hump at the right end means latents that fire on "
    "nearly every token. A tail at the left means latents that hardly ever fire. The note in each panel gives the share that never fires."
)
_TRAINING_CAPTION = (
    "Means over the logged intervals of training. L0 should be level by the end. A dead latent has not fired for dead_after_tokens tokens "
    "(a field of the sweep file)."
)


def inline_svg(document: str, prefix: str) -> Markup:
    """Return an SVG document as a page's element: no prolog, and every id prefixed."""
    svg = document[document.index("<svg") :]
    # Only inside tags, so that visible text is not changed.
    return Markup(re.sub(r"<[a-z][^>]*>", lambda tag: re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", tag[0]), svg))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=count, fraction=fraction, percent=percent, signed=signed, width_label=width_label)
    return environment


_ENVIRONMENT = _environment()
