"""The sweep's report: one HTML page that carries its plots and needs nothing from anywhere."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from scopemill.evaluator.fidelity.results import Evaluation, Result, last_steps
from scopemill.evaluator.report.figures import fidelity_figure, frequency_figure, frontiers, to_svg, training_figure
from scopemill.evaluator.report.panels import in_order
from scopemill.proto.layout import width_label
from scopemill.trainer.training.history import Row

MINUS = "\u2212"


def render_report(title: str, facts: dict[str, str], evaluations: list[Evaluation], histories: dict[str, list[Row]]) -> str:
    """The page. ``facts`` are shown as they are, by name; ``histories`` are by the name of their SAE."""
    results = in_order(e.result for e in evaluations)
    final = in_order(last_steps(results))
    return _ENVIRONMENT.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        tiles=_tiles(final),
        final=_final_rows(final),
        every=results,
        figures=_figures(evaluations, histories),
        evaluated_tokens=_span([e.evaluated_tokens for e in evaluations], lambda n: f"{n:,}"),
        splices_special=sorted({bool(e.settings.get("splice_special", False)) for e in evaluations}),
        settings=sorted({json.dumps(e.settings, indent=2, sort_keys=True, default=str) for e in evaluations}),
    )


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class FinalRow:
    """A final checkpoint and how it stands among those of its hook."""

    result: Result
    opens_hook: bool
    best: set[str]  # of "fvu" and "delta_loss": the lowest of the hook
    frontier: list[str]  # the qualities, by their names for people, on whose Pareto frontier with L0 it lies


@dataclass(frozen=True)
class Plot:
    heading: str
    how_to_read: str
    svg: Markup
    half: bool  # of the page's width is enough


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
        detail = f"nats/token; perplexity {_span([math.exp(c) for c in clean], lambda p: f'{p:.4g}')}"
        tiles.append(Tile("Clean loss of the LM", _span(clean, lambda c: f"{c:.3f}"), detail))
    return tiles


def _described(r: Result) -> str:
    return f"{r.place}, {width_label(r.width)} {r.architecture}, L0 {count(r.l0)}"


def _final_rows(final: list[Result]) -> list[FinalRow]:
    names = {"fvu": "FVU", "delta_loss": "\u0394 loss"}
    on_frontier = {quality: {r for hook in frontiers(final, quality).values() for r in hook} for quality in names}
    best = {quality: _lowest_per_hook(final, quality) for quality in names}
    return [
        FinalRow(
            result=r,
            opens_hook=i > 0 and final[i - 1].hook != r.hook,
            best={quality for quality in names if r in best[quality]},
            frontier=[name for quality, name in names.items() if r in on_frontier[quality]],
        )
        for i, r in enumerate(final)
    ]


def _lowest_per_hook(final: list[Result], quality: str) -> set[Result]:
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
            ("Reconstruction against sparsity", _READ_FVU, lambda: fidelity_figure(results, "fvu")),
            ("Language-model loss against sparsity", _READ_DELTA, lambda: fidelity_figure(results, "delta_loss")),
            ("How often latents fire", _READ_FREQUENCY, lambda: frequency_figure(evaluations)),
        ]
    if any(histories.values()):
        plots.append(("Training", _READ_TRAINING, lambda: training_figure(histories)))
    return [_plot(heading, text, draw(), f"plot{i}-") for i, (heading, text, draw) in enumerate(plots)]


def _plot(heading: str, how_to_read: str, figure: Figure, prefix: str) -> Plot:
    inches = figure.get_size_inches()[0]
    return Plot(heading, how_to_read, inline_svg(to_svg(figure), prefix), half=bool(inches < 6.5))


_READ_FVU = (
    "Each panel is a hook and each solid marker a finished SAE: lower and further left is better, and an SAE off the dark line is "
    "beaten in both L0 and FVU by another of its hook."
)
_READ_DELTA = (
    "As above, with what the reconstruction costs the language model: at 0 nats/token it predicts as well with the SAE spliced in as "
    "without."
)
_READ_FREQUENCY = (
    "The share of a finished SAE's latents at each firing frequency: a hump at the right end is latents that fire on nearly every "
    "token, a tail at the left is latents that hardly fire at all, and those that never fire are in the panel's note."
)
_READ_TRAINING = (
    "Means over the logged intervals of training, of which L0 should have levelled off by the end; dead latents are those that have "
    "not fired for the number of tokens that the sweep's dead_after_tokens says."
)


def inline_svg(document: str, prefix: str) -> Markup:
    """An SVG document as an element for a page: without its prolog, and with ids that no other figure's share."""
    svg = document[document.index("<svg") :]
    # Only inside tags, so that no text that people read is changed.
    return Markup(re.sub(r"<[a-z][^>]*>", lambda tag: re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", tag[0]), svg))


def count(value: float) -> str:
    """An L0: whole from 100, else one decimal, below 1 two digits."""
    return _plain(value, lambda v: f"{v:,.0f}" if abs(v) >= 100 else f"{v:.1f}" if abs(v) >= 1 or v == 0 else f"{v:.2g}")


def fraction(value: float) -> str:
    """An FVU: three decimals, or two digits if that would leave less."""
    return _plain(value, lambda v: f"{v:.3f}" if abs(v) >= 0.01 or v == 0 else f"{v:.2g}")


def percent(value: float) -> str:
    """A share: one decimal; what is not zero does not read as zero, nor as 100% what is not."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return _plain(value, lambda v: f"{100 * v:.1f}%")


def signed(value: float) -> str:
    """A difference of losses, with its sign."""
    return _plain(value, lambda v: f"{v:+.3f}" if abs(v) >= 0.01 or v == 0 else f"{v:+.2g}")


def _plain(value: float, pattern: Callable[[float], str]) -> str:
    return pattern(value).replace("-", MINUS) if math.isfinite(value) else "n/a"


def _span(values: list, pattern: Callable[[float], str]) -> str:
    """The one value that all share, or the range."""
    if not values:
        return "none"
    low, high = pattern(min(values)), pattern(max(values))
    return low if low == high else f"{low} to {high}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(count=count, fraction=fraction, percent=percent, signed=signed, width_label=width_label)
    return environment


_ENVIRONMENT = _environment()
