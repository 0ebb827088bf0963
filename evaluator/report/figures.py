"""The sweep's plots: pure functions from what was measured to a matplotlib ``Figure``, and how one is written.

Every plot is a grid of small panels laid out in inches, so that one panel and a hundred look alike. Nothing here touches
pyplot: a figure belongs to its caller and is freed with it.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from scopemill.evaluator.fidelity.results import Evaluation, Result, last_steps, pareto
from scopemill.evaluator.report.panels import INK, MUTED, STYLE, Ramp, grid, grid_of_hooks, log_scale, note, only_text, plain_ticks
from scopemill.proto.layout import width_label
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training.history import Row

Quality = Literal["fvu", "delta_loss"]

QUALITY_LABELS: dict[str, str] = {"fvu": "FVU (fraction of variance unexplained)", "delta_loss": "delta loss (nats/token)"}
MOST_NAMED_LINES = 12  # more SAEs than this are told apart by their sparsity, not by name
MOST_POINTS = 12_000  # of all lines of one training panel: with more, the SVG is megabytes and looks the same


# Okabe and Ito's colours without yellow and black: told apart in all common kinds of colour blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "^", "D", "s", "v", "P")
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


@matplotlib.rc_context(STYLE)
def fidelity_figure(results: list[Result], quality: Quality) -> Figure:
    """``quality`` against L0, a panel per hook. Lower and further left is better; one y scale per site, so that layers compare."""
    if not results:
        return only_text("No checkpoint has been evaluated.")
    looks = Looks.of(results)
    final = set(last_steps(results))
    on_frontier = frontiers(results, quality)
    figure, panels = grid_of_hooks(results, looks.markers() + _FIDELITY_KEYS, "L0 (active latents per token)", QUALITY_LABELS[quality])
    for hook, ax in panels.items():
        here = [r for r in results if r.hook == hook]
        for trail in _trails(here, quality):
            colour = looks.colour[trail[0].width]
            ax.plot(*_points(trail, quality), color=colour, lw=0.8, alpha=0.35, marker="o", ms=2.2, mew=0, zorder=2)
        ax.plot(*_points(on_frontier[hook], quality), color=INK, lw=1.1, alpha=0.75, zorder=3)
        for r in here:
            if r in final and _drawable(r, quality):
                edge = INK if r in on_frontier[hook] else "white"
                marker = looks.marker[r.architecture]
                ax.plot(r.l0, getattr(r, quality), marker, color=looks.colour[r.width], ms=5.5, mec=edge, mew=0.7, zorder=4)
        missing = sum(not _drawable(r, quality) for r in here if r in final)
        if missing:
            note(ax, f"{missing} not drawn: L0 = 0 or no number")
    _scale_fidelity(panels, results, final, quality)
    return figure


@matplotlib.rc_context(STYLE)
def frequency_figure(evaluations: list[Evaluation]) -> Figure:
    """How often the latents of each final checkpoint fire, a panel per hook; latents that never fire are in its note."""
    by_result = {e.result: e for e in evaluations}
    final = [by_result[r] for r in last_steps(list(by_result))]
    if not final:
        return only_text("No checkpoint has been evaluated.")
    results = [e.result for e in final]
    looks = Looks.of(results)
    x_label = "firing frequency (log10 of the share of tokens)"
    figure, panels = grid_of_hooks(results, looks.lines(), x_label, "latents per bin (% of the width)")
    top = 0.0
    for hook, ax in panels.items():
        here = [e for e in final if e.result.hook == hook]
        for e in here:
            latents = max(sum(e.histogram.counts) + e.histogram.never, 1)
            heights = 100 * np.asarray(e.histogram.counts) / latents
            style = dict(color=looks.shade(e.result), ls=looks.line[e.result.architecture], lw=1.1)
            ax.stairs(heights, e.histogram.edges, baseline=None, **style)
            top = max(top, heights.max(initial=0))
        never = [100 * e.histogram.never / max(sum(e.histogram.counts) + e.histogram.never, 1) for e in here]
        note(ax, f"never fire: {_span(never, '{:.1f}')}%", vertical="top")
    low, high = _occupied(final)
    for ax in panels.values():
        ax.set(xlim=(low, high), ylim=(0, (top or 1) * 1.18))  # room for the note
        plain_ticks(ax, "x", whole=True)
        plain_ticks(ax, "y")
    return figure


@matplotlib.rc_context(STYLE)
def training_figure(histories: dict[str, list[Row]]) -> Figure:
    """Loss, FVU, L0 and dead latents over training tokens, a line per SAE: named if they are few, else coloured by sparsity."""
    histories = {name: rows for name, rows in histories.items() if rows}
    if not histories:
        return only_text("No training has been logged.")
    few = len(histories) <= MOST_NAMED_LINES
    styles, keys = (_by_name if few else _by_sparsity)(histories)
    columns = ("loss", "fvu", "l0", "dead_latents")
    titles = ("loss (activations with E||x||\u00b2 = 1)", "FVU", "L0 (active latents per token)", "dead latents")
    figure, axes = grid(len(columns), 2, 2.55 if len(histories) <= 40 else 3.9, keys, "training tokens", "", y_ticks_everywhere=True)
    most = max(60, min(400, MOST_POINTS // len(histories)))
    for ax, column, title in zip(axes, columns, titles, strict=True):
        ax.set_title(title)
        for name, rows in histories.items():
            x, y = _thinned(rows, "tokens", most), _thinned(rows, column, most)
            ax.plot(x, y, lw=1.3 if few else 0.6, alpha=0.95 if few else 0.6, marker="o" if len(x) == 1 else "", ms=3, **styles[name])
        if column == "dead_latents":
            ax.set_ylim(bottom=0)
            plain_ticks(ax, "y", whole=True)
        else:
            log_scale(ax, "y", [getattr(row, column) for rows in histories.values() for row in rows])
        ax.set_xlim(0, max(rows[-1].tokens for rows in histories.values()) * 1.02)
        plain_ticks(ax, "x")
    return figure


def save(figure: Figure, bucket: Bucket, path_without_suffix: str) -> None:
    """Write ``<path>.png`` (150 dots per inch) and ``<path>.svg``; the same figure gives the same bytes."""
    png = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    bucket.write(f"{path_without_suffix}.png", png.getvalue())
    bucket.write(f"{path_without_suffix}.svg", to_svg(figure).encode())


@matplotlib.rc_context(STYLE)
def to_svg(figure: Figure) -> str:
    """The figure as an SVG document, the same for the same figure: text stays text, coordinates have two decimals."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Only inside tags, where text that people read cannot be: matplotlib escapes '>' in it.
    return re.sub(r"<[a-z][^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), buffer.getvalue())


def frontiers(results: list[Result], quality: Quality) -> dict[str, list[Result]]:
    """By hook: the final checkpoints that no other of the hook beats in both L0 and ``quality``, by ascending L0."""
    final = [r for r in last_steps(results) if _drawable(r, quality)]
    return {hook: pareto([r for r in final if r.hook == hook], quality) for hook in {r.hook for r in results}}


@dataclass(frozen=True)
class Looks:
    """One look for every figure of a sweep: colour is the width, marker and line style the architecture, shade the sparsity."""

    colour: dict[int, str]
    marker: dict[str, str]
    line: dict[str, str | tuple]
    sparsities: list[float]  # ascending

    @staticmethod
    def of(results: list[Result]) -> "Looks":
        widths, architectures = sorted({r.width for r in results}), sorted({r.architecture for r in results})
        return Looks(
            dict(zip(widths, _colours(len(widths)), strict=True)),
            {a: MARKERS[i % len(MARKERS)] for i, a in enumerate(architectures)},
            {a: LINES[i % len(LINES)] for i, a in enumerate(architectures)},
            sorted({r.sparsity for r in results}),
        )

    def shade(self, result: Result) -> str:
        """The width's colour, paler for a smaller coefficient."""
        rank = self.sparsities.index(result.sparsity)
        return _paler(self.colour[result.width], 0.35 + 0.65 * (rank + 1) / len(self.sparsities))

    def markers(self) -> list[Artist]:
        by_architecture = [Line2D([], [], color=MUTED, marker=m, ls="", ms=5.5, label=a) for a, m in self.marker.items()]
        return by_architecture + [Patch(color=c, label=f"{width_label(w)} latents") for w, c in self.colour.items()]

    def lines(self) -> list[Artist]:
        """A solid line per width; line styles and shades only where there is a choice."""
        keys = [Line2D([], [], color=c, lw=1.6, label=f"{width_label(w)} latents") for w, c in self.colour.items()]
        if len(self.line) > 1:
            keys += [Line2D([], [], color=MUTED, lw=1.2, ls=s, label=a) for a, s in self.line.items()]
        if len(self.sparsities) > 1:
            first = next(iter(self.colour.values()))
            label = f"pale to full: sparsity {self.sparsities[0]:g} to {self.sparsities[-1]:g}"
            keys.append(Ramp([_paler(first, share) for share in (0.4, 0.7, 1.0)], label))
        return keys


_FIDELITY_KEYS: list[Artist] = [
    Line2D([], [], color=INK, lw=1.1, alpha=0.75, label="Pareto frontier (final checkpoints)"),
    Line2D([], [], color=MUTED, lw=0.8, alpha=0.5, marker="o", ms=2.5, mew=0, label="earlier checkpoints"),
]


def _drawable(r: Result, quality: Quality) -> bool:
    """Whether a row has a place on a logarithmic L0 axis."""
    return r.l0 > 0 and math.isfinite(r.l0) and math.isfinite(getattr(r, quality))


def _points(results: Sequence[Result], quality: Quality) -> tuple[list[float], list[float]]:
    return [r.l0 for r in results], [getattr(r, quality) for r in results]


def _trails(results: list[Result], quality: Quality) -> list[list[Result]]:
    """Of each SAE with several checkpoints these, by step."""
    trails: dict[str, list[Result]] = {}
    for r in sorted(results, key=lambda r: r.step):
        if _drawable(r, quality):
            trails.setdefault(r.path.rsplit("/", 1)[0], []).append(r)  # by the folder of its checkpoints
    return [trail for trail in trails.values() if len(trail) > 1]


def _scale_fidelity(panels: dict[str, Axes], results: list[Result], final: set[Result], quality: Quality) -> None:
    """One L0 scale for all. An early checkpoint may leave at the top: at its scale the final ones would be one dot."""
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


def _occupied(evaluations: list[Evaluation]) -> tuple[float, float]:
    """The log10 frequencies between which any latent of any SAE lies."""
    low, high = [], []
    for e in evaluations:
        filled = np.flatnonzero(e.histogram.counts)
        if len(filled):
            low.append(e.histogram.edges[filled[0]])
            high.append(e.histogram.edges[filled[-1] + 1])
    return (min(low) - 0.1, max(high) + 0.1) if low else (-6.0, 0.0)


def _thinned(rows: list[Row], column: str, most: int) -> np.ndarray:
    """At most ``most`` values: means over equally many rows (the last over the rest). A row is itself a mean over steps."""
    values = np.array([getattr(row, column) for row in rows], dtype=float)
    every = math.ceil(len(values) / most)
    return np.array([values[i : i + every].mean() for i in range(0, len(values), every)])


def _by_name(histories: dict[str, list[Row]]) -> tuple[dict[str, dict], list[Artist]]:
    styles = {name: dict(color=PALETTE[i % len(PALETTE)], ls=LINES[i // len(PALETTE) % len(LINES)]) for i, name in enumerate(histories)}
    return styles, [Line2D([], [], lw=1.6, label=_shortened(name), **style) for name, style in styles.items()]


def _by_sparsity(histories: dict[str, list[Row]]) -> tuple[dict[str, dict], list[Artist]]:
    """Colours by the coefficient; of many coefficients the legend names a few."""
    coefficients = sorted({rows[-1].sparsity_coefficient for rows in histories.values()})
    colours = dict(zip(coefficients, _ramp(len(coefficients)), strict=True))
    styles = {name: dict(color=colours[rows[-1].sparsity_coefficient]) for name, rows in histories.items()}
    named = [coefficients[i] for i in sorted({round(i) for i in np.linspace(0, len(coefficients) - 1, min(len(coefficients), 7))})]
    return styles, [Line2D([], [], lw=1.6, color=colours[c], label=f"sparsity {c:g}") for c in named]


def _colours(n: int) -> list[str]:
    return list(PALETTE[:n]) if n <= len(PALETTE) else _ramp(n)


def _ramp(n: int) -> list[str]:
    """Viridis without its yellow end, which is too pale on white."""
    return [to_hex(c) for c in matplotlib.colormaps["viridis"](np.linspace(0, 0.8, n))]


def _paler(colour: str, share: float) -> str:
    """``share`` of the colour, the rest white."""
    return to_hex([share * c + 1 - share for c in to_rgb(colour)])


def _shortened(name: str, most: int = 72) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}\u2026{name[-most // 2 :]}"


def _span(values: list[float], pattern: str) -> str:
    low, high = pattern.format(min(values)), pattern.format(max(values))
    return low if low == high else f"{low} to {high}"
