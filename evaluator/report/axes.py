"""Draw a panel's axes: ticks, scales and notes."""

import math
from collections.abc import Iterable
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from scopemill.evaluator.report.style import MUTED


def short_number(value: float) -> str:
    """Format a number for a tick: 0.05, 250, 16k, 1.5M, 4B."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{value:.4g}"


def plain_ticks(ax: Axes, axis: Literal["x", "y"], whole: bool = False) -> None:
    """Set round ticks, as many as the panel has room for. ``whole``: integers only."""
    inches = (ax.bbox.width if axis == "x" else ax.bbox.height) / ax.figure.dpi
    most = min(max(round(2.4 * inches), 4), 6)
    which = getattr(ax, f"{axis}axis")
    which.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole))
    which.set_major_formatter(FuncFormatter(lambda v, _: short_number(v).replace("-", "\u2212")))


def log_scale(ax: Axes, axis: Literal["x", "y"], values: Iterable[float]) -> None:
    """Set a logarithmic axis with plain numbers around the positive values.

    The axis spans at least a factor of 5, so that two of 1, 2, 5, 10 are always on it.
    """
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
    """Write a small note into the panel's left corner."""
    ax.text(0.03, 0.97 if vertical == "top" else 0.03, text, transform=ax.transAxes, va=vertical, fontsize=7, color=MUTED)
