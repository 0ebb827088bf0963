"""Plot training curves: loss, FVU, L0 and dead latents over training tokens."""

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from scopemill.evaluator.report.axes import log_scale, plain_ticks
from scopemill.evaluator.report.legend import LegendKey
from scopemill.evaluator.report.panels import grid, only_text
from scopemill.evaluator.report.style import LINES, PALETTE, STYLE, colour_ramp
from scopemill.trainer.training.history import Row

MOST_NAMED_LINES = 12  # with more SAEs, lines are coloured by sparsity and not named
MOST_POINTS = 12_000  # of all lines of one panel: with more, the SVG takes megabytes and looks the same
MOST_NAMED_COEFFICIENTS = 7

_TITLES = {
    "loss": "loss (activations with E||x||\u00b2 = 1)",
    "fvu": "FVU",
    "l0": "L0 (active latents per token)",
    "dead_latents": "dead latents",
}


@dataclass(frozen=True)
class _LineStyle:
    colour: str
    line: LineStyleType = "-"


@matplotlib.rc_context(STYLE)
def training_figure(histories: dict[str, list[Row]]) -> Figure:
    """Plot loss, FVU, L0 and dead latents over training tokens, a line per SAE.

    Up to ``MOST_NAMED_LINES`` SAEs are named. More are coloured by sparsity.
    """
    histories = {name: rows for name, rows in histories.items() if rows}
    if not histories:
        return only_text("No training has been logged.")
    few = len(histories) <= MOST_NAMED_LINES
    styles, keys = (_style_by_name if few else _style_by_sparsity)(histories)
    width = 2.55 if len(histories) <= 40 else 3.9
    figure, axes = grid(len(_TITLES), 2, width, keys, "training tokens", "", y_ticks_everywhere=True)
    most = max(60, min(400, MOST_POINTS // len(histories)))
    for ax, (column, title) in zip(axes, _TITLES.items(), strict=True):
        ax.set_title(title)
        for name, rows in histories.items():
            x, y = _thinned(rows, "tokens", most), _thinned(rows, column, most)
            style, marker = styles[name], "o" if len(x) == 1 else ""
            ax.plot(x, y, lw=1.3 if few else 0.6, alpha=0.95 if few else 0.6, marker=marker, ms=3, color=style.colour, ls=style.line)
        _scale(ax, column, histories)
    return figure


def _scale(ax: Axes, column: str, histories: dict[str, list[Row]]) -> None:
    if column == "dead_latents":
        ax.set_ylim(bottom=0)
        plain_ticks(ax, "y", whole=True)
    else:
        log_scale(ax, "y", [getattr(row, column) for rows in histories.values() for row in rows])
    ax.set_xlim(0, max(rows[-1].tokens for rows in histories.values()) * 1.02)
    plain_ticks(ax, "x")


def _thinned(rows: list[Row], column: str, most: int) -> np.ndarray:
    """Return at most ``most`` values of a column, as means over groups of rows."""
    values = np.array([getattr(row, column) for row in rows], dtype=float)
    every = math.ceil(len(values) / most)
    return np.array([values[i : i + every].mean() for i in range(0, len(values), every)])


def _style_by_name(histories: dict[str, list[Row]]) -> tuple[dict[str, _LineStyle], list[LegendKey]]:
    """Give each SAE its own colour and line, and a legend key."""
    styles = {name: _LineStyle(PALETTE[i % len(PALETTE)], LINES[i // len(PALETTE) % len(LINES)]) for i, name in enumerate(histories)}
    return styles, [Line2D([], [], lw=1.6, label=_shortened(name), color=s.colour, ls=s.line) for name, s in styles.items()]


def _style_by_sparsity(histories: dict[str, list[Row]]) -> tuple[dict[str, _LineStyle], list[LegendKey]]:
    """Colour lines by sparsity coefficient. If there are many coefficients, the legend names a few."""
    coefficients = sorted({rows[-1].sparsity_coefficient for rows in histories.values()})
    colours = dict(zip(coefficients, colour_ramp(len(coefficients)), strict=True))
    styles = {name: _LineStyle(colours[rows[-1].sparsity_coefficient]) for name, rows in histories.items()}
    named = np.linspace(0, len(coefficients) - 1, min(len(coefficients), MOST_NAMED_COEFFICIENTS))
    chosen = [coefficients[i] for i in sorted({round(x) for x in named})]
    return styles, [Line2D([], [], lw=1.6, color=colours[c], label=f"sparsity {c:g}") for c in chosen]


def _shortened(name: str, most: int = 72) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}\u2026{name[-most // 2 :]}"
