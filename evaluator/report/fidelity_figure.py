"""Plot reconstruction or loss against L0, with the Pareto frontier of each hook."""

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scopemill.evaluator.fidelity.results import Quality, Result, last_steps, pareto
from scopemill.evaluator.report.axes import log_scale, note, plain_ticks
from scopemill.evaluator.report.legend import LegendKey
from scopemill.evaluator.report.panels import grid_of_hooks, only_text
from scopemill.evaluator.report.style import INK, MUTED, STYLE, SaeStyles

QUALITY_LABELS: dict[Quality, str] = {"fvu": "FVU (fraction of variance unexplained)", "delta_loss": "delta loss (nats/token)"}

_KEYS: list[LegendKey] = [
    Line2D([], [], color=INK, lw=1.1, alpha=0.75, label="Pareto frontier (final checkpoints)"),
    Line2D([], [], color=MUTED, lw=0.8, alpha=0.5, marker="o", ms=2.5, mew=0, label="earlier checkpoints"),
]


@matplotlib.rc_context(STYLE)
def fidelity_figure(results: list[Result], quality: Quality) -> Figure:
    """Plot ``quality`` against L0, a panel per hook.

    All panels of a site share one y scale, so that layers can be compared.
    """
    if not results:
        return only_text("No checkpoint has been evaluated.")
    styles = SaeStyles.of(results)
    final = set(last_steps(results))
    on_frontier = frontiers(results, quality)
    figure, panels = grid_of_hooks(results, styles.marker_keys() + _KEYS, "L0 (active latents per token)", QUALITY_LABELS[quality])
    for hook, ax in panels.items():
        of_hook = [r for r in results if r.hook == hook]
        for trail in _trails(of_hook, quality):
            colour = styles.colour[trail[0].width]
            ax.plot(*_points(trail, quality), color=colour, lw=0.8, alpha=0.35, marker="o", ms=2.2, mew=0, zorder=2)
        ax.plot(*_points(on_frontier[hook], quality), color=INK, lw=1.1, alpha=0.75, zorder=3)
        finals = [r for r in of_hook if r in final]
        drawn = [r for r in finals if _drawable(r, quality)]
        for r in drawn:
            edge = INK if r in on_frontier[hook] else "white"
            marker = styles.marker[r.architecture]
            ax.plot(r.l0, getattr(r, quality), marker, color=styles.colour[r.width], ms=5.5, mec=edge, mew=0.7, zorder=4)
        if missing := len(finals) - len(drawn):
            note(ax, f"{missing} not drawn: L0 is 0 or a value is not finite")
    _scale(panels, results, final, quality)
    return figure


def frontiers(results: list[Result], quality: Quality) -> dict[str, list[Result]]:
    """Return the Pareto frontier of each hook's final checkpoints, by ascending L0."""
    final = [r for r in last_steps(results) if _drawable(r, quality)]
    return {hook: pareto([r for r in final if r.hook == hook], quality) for hook in {r.hook for r in results}}


def _drawable(r: Result, quality: Quality) -> bool:
    """Return True if a row has a place on a logarithmic L0 axis."""
    return r.l0 > 0 and math.isfinite(r.l0) and math.isfinite(getattr(r, quality))


def _points(results: Sequence[Result], quality: Quality) -> tuple[list[float], list[float]]:
    return [r.l0 for r in results], [getattr(r, quality) for r in results]


def _trails(results: list[Result], quality: Quality) -> list[list[Result]]:
    """Return the checkpoints of each SAE with several of them, by step."""
    trails: dict[str, list[Result]] = {}
    for r in sorted(results, key=lambda r: r.step):
        if _drawable(r, quality):
            trails.setdefault(r.path.rsplit("/", 1)[0], []).append(r)  # by the folder of the SAE's checkpoints
    return [trail for trail in trails.values() if len(trail) > 1]


def _scale(panels: dict[str, Axes], results: list[Result], final: set[Result], quality: Quality) -> None:
    """Set one L0 scale for all panels, and one y scale per site.

    An early checkpoint may lie above the panel: on a scale that shows it, the final ones would be one dot.
    """
    drawable = [r for r in results if _drawable(r, quality)]
    site_of = {r.hook: r.site for r in results}
    for hook, ax in panels.items():
        log_scale(ax, "x", [r.l0 for r in drawable])
        of_site = [(r in final, getattr(r, quality)) for r in drawable if r.site == site_of[hook]]
        highest = max((v for is_final, v in of_site if is_final), default=1.0)
        lowest, top = min((v for _, v in of_site), default=0.0), max((v for _, v in of_site), default=1.0)
        top = min(top, 1.6 * highest) if highest > 0 else top
        margin = 0.08 * (top - lowest) or 0.1
        ax.set_ylim(0 if 0 <= lowest < top / 2 else lowest - margin, top + margin)
        plain_ticks(ax, "y")
