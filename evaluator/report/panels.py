"""Lay out panels: grids of small axes, in inches."""

import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scopemill.evaluator.fidelity.results import Result, in_order
from scopemill.evaluator.report.legend import ROW_INCHES, LegendKey, draw_legend, legend_places
from scopemill.evaluator.report.style import MUTED

MOST_COLUMNS = 6
# Inches, by number of columns. A figure of one or two columns takes half a page, one with more takes the whole width.
PANEL_WIDTHS = {1: 4.6, 2: 2.65, 3: 2.9, 4: 2.2, 5: 1.78, 6: 1.5}
ROWS_PER_SCREEN = 6


def only_text(text: str) -> Figure:
    """Return a figure that shows a sentence and no panel."""
    figure = Figure(figsize=(5.5, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, fontsize=10)
    return figure


def grid_of_hooks(results: list[Result], keys: list[LegendKey], x_label: str, y_label: str) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with an empty panel per hook, ordered by layer and site.

    If every layer has the same sites, each column holds one site.
    """
    first = {r.hook: r for r in in_order(results)}
    layers, sites = {r.layer for r in first.values()}, {r.site for r in first.values()}
    regular = len(first) == len(layers) * len(sites)
    columns = columns_for(len(first), len(sites) if regular else 1)
    figure, axes = grid(len(first), columns, PANEL_WIDTHS[columns], keys, x_label, y_label, y_ticks_everywhere=len(sites) > 1)
    for ax, r in zip(axes, first.values(), strict=True):
        ax.set_title(r.place)
    return figure, dict(zip(first, axes, strict=True))


def columns_for(panels: int, sites: int) -> int:
    """Choose the number of columns for a grid that is about square.

    A multiple of ``sites`` is preferred, then few empty places.
    """
    least = min(math.ceil(math.sqrt(panels)), MOST_COLUMNS)
    choices = [c for c in range(least, MOST_COLUMNS + 1) if c % sites == 0] or list(range(least, MOST_COLUMNS + 1))
    return min(choices, key=lambda c: -panels % c)


def grid(
    panels: int, columns: int, width: float, keys: list[LegendKey], x_label: str, y_label: str, y_ticks_everywhere: bool
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes in reading order, with a legend above.

    Each panel is ``width`` inches wide.
    """
    layout = _Layout.of(panels, columns, width, keys, bool(y_label), y_ticks_everywhere)
    figure = Figure(figsize=(layout.total_width, layout.total_height))
    axes = []
    for i in range(panels):
        ax = figure.add_axes(layout.rectangle(i))
        # Inner panels leave tick labels to the edge of the grid, unless the edge is a screen away.
        ax.tick_params(labelleft=y_ticks_everywhere or i % columns == 0, labelbottom=layout.rows > ROWS_PER_SCREEN or i + columns >= panels)
        axes.append(ax)
    _draw_labels(figure, layout, x_label, y_label)
    draw_legend(figure, keys, layout.legend, layout.left)
    return figure, axes


@dataclass(frozen=True)
class _Layout:
    """Place the panels of a grid. Lengths are in inches."""

    columns: int
    rows: int
    width: float  # of a panel
    height: float
    left: float
    right: float
    bottom: float
    top: float
    between: float  # columns
    legend: list[tuple[float, int]]

    @staticmethod
    def of(panels: int, columns: int, width: float, keys: list[LegendKey], has_y_label: bool, y_ticks_everywhere: bool) -> "_Layout":
        left, right, between = (0.75 if has_y_label else 0.5), 0.15, (0.45 if y_ticks_everywhere else 0.2)
        legend = legend_places(keys, columns * width + (columns - 1) * between + right)
        top = ROW_INCHES * (legend[-1][1] + 1) + 0.4
        rows, height = math.ceil(panels / columns), 0.7 * width + 0.1
        return _Layout(columns, rows, width, height, left, right, bottom=0.6, top=top, between=between, legend=legend)

    @property
    def row_height(self) -> float:
        return self.height + 0.5  # room for the title

    @property
    def total_width(self) -> float:
        return self.left + self.columns * self.width + (self.columns - 1) * self.between + self.right

    @property
    def total_height(self) -> float:
        return self.top + self.rows * self.row_height - 0.5 + self.bottom

    def rectangle(self, i: int) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height of panel i as shares of the figure."""
        row, column = divmod(i, self.columns)
        x, y = self.left + column * (self.width + self.between), self.total_height - self.top - row * self.row_height - self.height
        return x / self.total_width, y / self.total_height, self.width / self.total_width, self.height / self.total_height


def _draw_labels(figure: Figure, layout: _Layout, x_label: str, y_label: str) -> None:
    """Label the axes of the grid. A tall figure repeats the y label."""
    width, height = layout.total_width, layout.total_height
    middle = layout.left + (width - layout.left - layout.right) / 2
    figure.text(middle / width, 0.12 / height, x_label, ha="center", va="bottom", fontsize=8.5)
    repeats = math.ceil(layout.rows / ROWS_PER_SCREEN)
    for i in range(repeats):
        y = layout.bottom + (i + 0.5) / repeats * (height - layout.top - layout.bottom)
        figure.text(0.1 / width, y / height, y_label, ha="left", va="center", rotation=90, fontsize=8.5)
