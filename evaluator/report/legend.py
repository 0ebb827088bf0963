"""Place and draw the keys of the legend above a grid of panels."""

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

ROW_INCHES = 0.16


class Ramp(tuple[Line2D, ...]):
    """Show several short lines under one label of a legend."""

    label: str

    def __new__(cls, colours: list[str], label: str) -> "Ramp":
        ramp = super().__new__(cls, [Line2D([], [], color=c, lw=1.6) for c in colours])
        ramp.label = label
        return ramp

    def get_label(self) -> str:
        """Return the label, as matplotlib's artists do."""
        return self.label


LegendKey = Artist | Ramp


def legend_places(keys: list[LegendKey], width: float) -> list[tuple[float, int]]:
    """Return the x in inches and the row of each key, within ``width`` inches.

    Keys flow like words; if they are about equally wide they form a table.
    """
    font = FontProperties(size=matplotlib.rcParams["legend.fontsize"])
    points = [text_to_path.get_text_width_height_descent(str(key.get_label()), font, ismath=False)[0] for key in keys]
    widths = [p / 72 + 0.4 for p in points]  # 0.4 for handle and gap
    is_table = max(widths) < 1.3 * min(widths)
    places, x, row = [], 0.0, 0
    for needed in widths:
        needed = max(widths) if is_table else needed
        if x > 0 and x + needed > width:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += needed
    return places


def draw_legend(figure: Figure, keys: list[LegendKey], places: list[tuple[float, int]], left: float) -> None:
    """Draw one legend per key, from ``left`` inches on.

    Matplotlib's own columns are as wide as their widest key, which wastes rows on a small figure.
    """
    width, height = figure.get_size_inches()
    for key, (x, row) in zip(keys, places, strict=True):
        figure.legend(  # type: ignore[call-overload]  # the stubs know no tuples of handles
            [key], [str(key.get_label())], loc="upper left", borderaxespad=0, borderpad=0, handlelength=1.7, handletextpad=0.5,
            bbox_to_anchor=((left + x) / width, 1 - (0.08 + ROW_INCHES * row) / height),
            handler_map={Ramp: HandlerTuple(ndivide=None, pad=0.1)},
        )  # fmt: skip
