"""Format numbers for the report's page."""

import math
from collections.abc import Callable, Sequence

MINUS = "\u2212"


def count(value: float) -> str:
    """Format an L0: no decimal from 100, one from 1, two digits below."""
    return _format(value, lambda v: f"{v:,.0f}" if abs(v) >= 100 else f"{v:.1f}" if abs(v) >= 1 or v == 0 else f"{v:.2g}")


def fraction(value: float) -> str:
    """Format an FVU: three decimals, or two digits below 0.01."""
    return _format(value, lambda v: f"{v:.3f}" if abs(v) >= 0.01 or v == 0 else f"{v:.2g}")


def percent(value: float) -> str:
    """Format a share with one decimal. Only 0 gives 0%, only 1 gives 100%."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return _format(value, lambda v: f"{100 * v:.1f}%")


def signed(value: float) -> str:
    """Format a difference of losses, with its sign."""
    return _format(value, lambda v: f"{v:+.3f}" if abs(v) >= 0.01 or v == 0 else f"{v:+.2g}")


def span(values: Sequence[float], pattern: Callable[[float], str]) -> str:
    """Format the range of values, or the one value if all are equal."""
    if not values:
        return "none"
    low, high = pattern(min(values)), pattern(max(values))
    return low if low == high else f"{low} to {high}"


def _format(value: float, pattern: Callable[[float], str]) -> str:
    return pattern(value).replace("-", MINUS) if math.isfinite(value) else "n/a"
