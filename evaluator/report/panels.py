"""Panels: grids of small axes laid out in inches, their ticks, scales and legends, in one style."""

import math
from collections.abc import Iterable
from typing import Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from scopemill.evaluator.fidelity.results import Result

MOST_COLUMNS = 6


# Inches, by columns. One and two columns make a figure that stands beside another on a page, more fill its width.
PANEL_WIDTHS = {1: 4.6, 2: 2.65, 3: 2.9, 4: 2.2, 5: 1.78, 6: 1.5}


INK, MUTED, FAINT = "#22262b", "#5d646d", "#e4e7ea"


# Everything that a user's matplotlibrc could change and that would change our files. Math is off because a name may hold a '$'.
STYLE = {
    "font.family": ["DejaVu Sans"], "font.size": 8, "text.color": INK, "text.parse_math": False, "text.usetex": False,
    "axes.edgecolor": "#b4bac1", "axes.linewidth": 0.7, "axes.labelcolor": INK, "axes.labelsize": 8.5, "axes.titlesize": 8.5,
    "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.titlepad": 5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "white", "axes.unicode_minus": True, "figure.facecolor": "white",
    "grid.color": FAINT, "grid.linewidth": 0.6, "grid.linestyle": "-", "grid.alpha": 1.0, "legend.fontsize": 8, "legend.frameon": False,
    "xtick.color": "#b4bac1", "ytick.color": "#b4bac1", "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.solid_capstyle": "round", "path.simplify": True,
    "svg.fonttype": "none", "svg.hashsalt": "scopemill", "savefig.facecolor": "auto", "savefig.bbox": None,
}  # fmt: skip


def in_order(results: Iterable[Result]) -> list[Result]:
    """Layer by layer, site by site, then by architecture, width, sparsity and step."""
    return sorted(results, key=lambda r: (r.layer, r.site, r.hook, r.architecture, r.width, r.sparsity, r.step))


def short_number(value: float) -> str:
    """For axes and tiles: 0.05, 250, 16k, 1.5M, 4B."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{value:.4g}"


class Ramp(tuple):
    """Several short lines under one label of a legend."""

    def __new__(cls, colours: list[str], label: str) -> "Ramp":
        ramp = super().__new__(cls, [Line2D([], [], color=c, lw=1.6) for c in colours])
        ramp.label = label
        return ramp

    def get_label(self) -> str:
        return self.label


def plain_ticks(ax: Axes, axis: Literal["x", "y"], whole: bool = False) -> None:
    """Round numbers, as many as the panel has room for."""
    inches = (ax.bbox.width if axis == "x" else ax.bbox.height) / ax.figure.dpi
    most = min(max(round(2.4 * inches), 4), 6)
    which = getattr(ax, f"{axis}axis")
    which.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole))
    which.set_major_formatter(FuncFormatter(lambda v, _: short_number(v).replace("-", "\u2212")))


def log_scale(ax: Axes, axis: Literal["x", "y"], values: Iterable[float]) -> None:
    """A logarithmic axis with plain numbers, at least a factor of 5 wide so that two of 1, 2, 5, 10 are always on it."""
    logs = [math.log10(v) for v in values if v > 0 and math.isfinite(v)] or [0.0]
    middle, half = (min(logs) + max(logs)) / 2, max((max(logs) - min(logs)) * 0.54 + 0.03, math.log10(5) / 2)
    low, high = middle - half, middle + half
    steps = next(s for decades, s in ((1, (1, 2, 3, 5)), (1.7, (1, 2, 5)), (3, (1, 3)), (math.inf, (1,))) if high - low < decades)
    ticks = [s * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for s in steps]
    getattr(ax, f"set_{axis}scale")("log")
    getattr(ax, f"set_{axis}lim")(10**low, 10**high)
    which = getattr(ax, f"{axis}axis")
    which.set_major_locator(FixedLocator([t for t in ticks if low <= math.log10(t) <= high]))
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(FuncFormatter(lambda v, _: short_number(v)))


def note(ax: Axes, text: str, vertical: Literal["top", "bottom"] = "bottom") -> None:
    ax.text(0.03, 0.97 if vertical == "top" else 0.03, text, transform=ax.transAxes, va=vertical, fontsize=7, color=MUTED)


def only_text(text: str) -> Figure:
    figure = Figure(figsize=(5.5, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, fontsize=10)
    return figure


def grid_of_hooks(results: list[Result], keys: list[Artist], x_label: str, y_label: str) -> tuple[Figure, dict[str, Axes]]:
    """A panel per hook, layer by layer and site by site; where every layer has the same sites, a column holds one of them."""
    first = {r.hook: r for r in in_order(results)}
    layers, sites = {r.layer for r in first.values()}, {r.site for r in first.values()}
    regular = len(first) == len(layers) * len(sites)
    columns = columns_for(len(first), len(sites) if regular else 1)
    figure, axes = grid(len(first), columns, PANEL_WIDTHS[columns], keys, x_label, y_label, y_ticks_everywhere=len(sites) > 1)
    for ax, r in zip(axes, first.values(), strict=True):
        ax.set_title(r.place)
    return figure, dict(zip(first, axes, strict=True))


def columns_for(panels: int, sites: int) -> int:
    """About as many columns as rows, at most ``MOST_COLUMNS``, in whole groups of ``sites``, with few empty places."""
    least = min(math.ceil(math.sqrt(panels)), MOST_COLUMNS)
    choices = [c for c in range(least, MOST_COLUMNS + 1) if c % sites == 0] or list(range(least, MOST_COLUMNS + 1))
    return min(choices, key=lambda c: -panels % c)


def grid(
    panels: int, columns: int, width: float, keys: list[Artist], x_label: str, y_label: str, y_ticks_everywhere: bool
) -> tuple[Figure, list[Axes]]:
    """Axes in reading order, each ``width`` inches wide, the legend above them. Lengths in inches."""
    height, rows = 0.7 * width + 0.1, math.ceil(panels / columns)
    left, right, bottom, between = (0.75 if y_label else 0.5), 0.15, 0.6, (0.45 if y_ticks_everywhere else 0.2)
    total_width = left + columns * width + (columns - 1) * between + right
    places = _legend_places(keys, total_width - left)
    top, row_height = 0.16 * (places[-1][1] + 1) + 0.4, height + 0.5
    total_height = top + rows * row_height - 0.5 + bottom
    figure = Figure(figsize=(total_width, total_height))
    axes = []
    for i in range(panels):
        x, y = left + i % columns * (width + between), total_height - top - i // columns * row_height - height
        ax = figure.add_axes((x / total_width, y / total_height, width / total_width, height / total_height))
        # An inner panel leaves its tick labels to the edge of the grid, unless that is a screen away.
        ax.tick_params(labelleft=y_ticks_everywhere or i % columns == 0, labelbottom=rows > 6 or i + columns >= panels)
        axes.append(ax)
    middle = left + (total_width - left - right) / 2
    figure.text(middle / total_width, 0.12 / total_height, x_label, ha="center", va="bottom", fontsize=8.5)
    labels = math.ceil(rows / 6)  # on a tall figure the y label is repeated
    for i in range(labels):
        y = bottom + (i + 0.5) / labels * (total_height - top - bottom)
        figure.text(0.1 / total_width, y / total_height, y_label, ha="left", va="center", rotation=90, fontsize=8.5)
    _draw_legend(figure, keys, places, left)
    return figure, axes


def _legend_places(keys: list[Artist], width: float) -> list[tuple[float, int]]:
    """Of each key its x in inches and its row, within ``width`` inches: a flow, or a table if the keys are about equally wide."""
    font = FontProperties(size=matplotlib.rcParams["legend.fontsize"])
    points = [text_to_path.get_text_width_height_descent(str(key.get_label()), font, ismath=False)[0] for key in keys]
    widths = [p / 72 + 0.4 for p in points]  # handle and gap
    is_table = max(widths) < 1.3 * min(widths)
    places, x, row = [], 0.0, 0
    for needed in widths:
        needed = max(widths) if is_table else needed
        if x > 0 and x + needed > width:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += needed
    return places


def _draw_legend(figure: Figure, keys: list[Artist], places: list[tuple[float, int]], left: float) -> None:
    """A legend per key: matplotlib's own columns are as wide as their widest key, which wastes rows on a small figure."""
    width, height = figure.get_size_inches()
    for key, (x, row) in zip(keys, places, strict=True):
        figure.legend(
            [key], [key.get_label()], loc="upper left", borderaxespad=0, borderpad=0, handlelength=1.7, handletextpad=0.5,
            bbox_to_anchor=((left + x) / width, 1 - (0.08 + 0.16 * row) / height), handler_map={Ramp: HandlerTuple(ndivide=None, pad=0.1)},
        )  # fmt: skip
