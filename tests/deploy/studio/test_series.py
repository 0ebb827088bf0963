"""Decimated curves show what whole curves would."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.studio import row

from scopemill.deploy.studio.series import COLUMNS, decimated, series_of

VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300)


@given(values=VALUES, points=st.integers(2, 60))
def test_ends_and_extremes_survive_in_at_most_so_many_points(values, points):
    steps = [7 * at + 1 for at in range(len(values))]
    found = decimated(steps, values, points)
    assert len(found.steps) == len(found.values) <= max(points, 2) and found.steps == sorted(set(found.steps))
    whole = dict(zip(steps, values, strict=True))
    for step, value in zip(found.steps, found.values, strict=True):
        assert value == whole[step] if value is not None else not math.isfinite(whole[step])
    if values:
        assert (found.steps[0], found.steps[-1]) == (steps[0], steps[-1])
    finite = [value for value in values if math.isfinite(value)]
    kept = [value for value in found.values if value is not None]
    if finite and points >= 4:
        assert (min(kept), max(kept)) == (min(finite), max(finite))


def test_a_spike_of_one_row_in_ten_thousand_is_seen():
    values = [1.0] * 10_000
    values[7_777] = 50.0
    assert max(decimated(range(10_000), values, 200).values) == 50.0


def test_every_column_of_the_history_has_a_curve():
    found = series_of([row(10), row(20, fvu=math.nan)], 100)
    assert set(found) == set(COLUMNS) >= {"loss", "l0", "fvu", "dead", "lr", "sparsity_factor"}
    assert found["fvu"].values == [pytest.approx(0.3), None] and found["dead"].values == [2, 2]
