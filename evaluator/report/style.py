"""Set the style of all figures.

It is matplotlib's settings, and the colours, markers and lines of SAEs.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.typing import LineStyleType

from scopemill.evaluator.fidelity.results import Result
from scopemill.evaluator.report.legend import LegendKey, Ramp
from scopemill.proto.layout import width_label

INK, MUTED, FAINT = "#22262b", "#5d646d", "#e4e7ea"

# Everything that a user's matplotlibrc could change in our files. Math is off because a name may hold a '$'.
STYLE = matplotlib.RcParams({
    "font.family": ["DejaVu Sans"], "font.size": 8, "text.color": INK, "text.parse_math": False, "text.usetex": False,
    "axes.edgecolor": "#b4bac1", "axes.linewidth": 0.7, "axes.labelcolor": INK, "axes.labelsize": 8.5, "axes.titlesize": 8.5,
    "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.titlepad": 5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "white", "axes.unicode_minus": True, "figure.facecolor": "white",
    "grid.color": FAINT, "grid.linewidth": 0.6, "grid.linestyle": "-", "grid.alpha": 1.0, "legend.fontsize": 8, "legend.frameon": False,
    "xtick.color": "#b4bac1", "ytick.color": "#b4bac1", "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.solid_capstyle": "round", "path.simplify": True,
    "svg.fonttype": "none", "svg.hashsalt": "scopemill", "savefig.facecolor": "auto", "savefig.bbox": None,
})  # fmt: skip

# Okabe and Ito's colours without yellow and black: readers with any common colour blindness can tell them apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "^", "D", "s", "v", "P")
LINES: tuple[LineStyleType, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class SaeStyles:
    """Give each SAE one look in all figures.

    Colour shows the width, marker and line the architecture, shade the sparsity.
    """

    colour: dict[int, str]
    marker: dict[str, str]
    line: dict[str, LineStyleType]
    sparsities: list[float]  # ascending

    @staticmethod
    def of(results: list[Result]) -> "SaeStyles":
        """Choose the styles for these results."""
        widths, architectures = sorted({r.width for r in results}), sorted({r.architecture for r in results})
        colours = PALETTE if len(widths) <= len(PALETTE) else colour_ramp(len(widths))
        return SaeStyles(
            dict(zip(widths, colours, strict=False)),
            {a: MARKERS[i % len(MARKERS)] for i, a in enumerate(architectures)},
            {a: LINES[i % len(LINES)] for i, a in enumerate(architectures)},
            sorted({r.sparsity for r in results}),
        )

    def shade(self, result: Result) -> str:
        """Return the colour of the SAE's width, paler for a smaller sparsity."""
        rank = self.sparsities.index(result.sparsity)
        return _paler(self.colour[result.width], 0.35 + 0.65 * (rank + 1) / len(self.sparsities))

    def marker_keys(self) -> list[LegendKey]:
        """Return legend keys of markers by architecture and colours by width."""
        by_architecture: list[Artist] = [Line2D([], [], color=MUTED, marker=m, ls="", ms=5.5, label=a) for a, m in self.marker.items()]
        return [*by_architecture, *(Patch(color=c, label=f"{width_label(w)} latents") for w, c in self.colour.items())]

    def line_keys(self) -> list[LegendKey]:
        """Return legend keys of colours, and of line styles and shades that differ."""
        keys: list[LegendKey] = [Line2D([], [], color=c, lw=1.6, label=f"{width_label(w)} latents") for w, c in self.colour.items()]
        if len(self.line) > 1:
            keys += [Line2D([], [], color=MUTED, lw=1.2, ls=s, label=a) for a, s in self.line.items()]
        if len(self.sparsities) > 1:
            first = next(iter(self.colour.values()))
            label = f"pale to full: sparsity {self.sparsities[0]:g} to {self.sparsities[-1]:g}"
            keys.append(Ramp([_paler(first, share) for share in (0.4, 0.7, 1.0)], label))
        return keys


def colour_ramp(n: int) -> list[str]:
    """Return n colours of viridis, without its yellow end, which is too pale on white."""
    return [to_hex(matplotlib.colormaps["viridis"](float(x))) for x in np.linspace(0, 0.8, n)]


def _paler(colour: str, share: float) -> str:
    """Mix ``share`` of the colour with white."""
    red, green, blue = (share * c + 1 - share for c in to_rgb(colour))
    return to_hex((red, green, blue))
