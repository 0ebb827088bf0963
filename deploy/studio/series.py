"""Return few points of a curve that show what the whole would."""

import math
from collections.abc import Sequence
from dataclasses import fields

from scopemill.deploy.studio.models.histories import Series
from scopemill.trainer.training.history import Row

COLUMNS = {
    "loss": "loss",
    "l0": "l0",
    "fvu": "fvu",
    "dead": "dead_latents",
    "lr": "learning_rate",
    **{field.name: field.name for field in fields(Row) if field.name not in ("step", "loss", "l0", "fvu", "dead_latents", "learning_rate")},
}


def series_of(rows: Sequence[Row], points: int, columns: Sequence[str] = ()) -> dict[str, Series]:
    """Return the curves of a history by name, each of at most ``points`` points."""
    steps = [row.step for row in rows]
    return {name: decimated(steps, [getattr(row, COLUMNS[name]) for row in rows], points) for name in columns or COLUMNS}


def decimated(steps: Sequence[int], values: Sequence[float], points: int) -> Series:
    """Return the ends of a curve, and its extremes between them.

    These are the smallest and the largest value of each of equally many steps. A value that is not finite is a gap, None.
    """
    finite = [value if math.isfinite(value) else None for value in values]
    count = len(steps)
    if count <= points or count <= 2:
        return Series(steps=list(steps), values=finite)
    buckets = (points - 2) // 2
    kept = {0, count - 1}
    inner = count - 2
    for bucket in range(buckets):
        within = range(1 + inner * bucket // buckets, 1 + inner * (bucket + 1) // buckets)
        there = [(value, at) for at in within if (value := finite[at]) is not None]
        if there:
            kept |= {min(there)[1], max(there)[1]}
        elif within:
            kept.add(within[0])
    chosen = sorted(kept)
    return Series(steps=[steps[at] for at in chosen], values=[finite[at] for at in chosen])
