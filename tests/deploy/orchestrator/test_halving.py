"""Successive halving: dominated SAEs, decided from histories alone, in whatever order the histories come."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopemill.deploy.orchestrator.halving import Halving, Point, outdone

FRONTIER = {"a": Point(10, 0.4), "b": Point(20, 0.3), "c": Point(40, 0.2)}


def test_no_sae_on_the_frontier_is_stopped_however_small_keep_is():
    assert outdone(FRONTIER, keep=0.01) == {}


def test_saes_with_the_most_dominating_rivals_stop_first_and_enough_are_kept():
    points = FRONTIER | {"worst": Point(50, 0.9), "bad": Point(25, 0.35), "equal": Point(10, 0.5)}
    assert outdone(points, keep=0.5) == {"worst": ("a", "b", "bad", "c", "equal"), "bad": ("b",), "equal": ("a",)}
    assert list(outdone(points, keep=0.8)) == ["worst"]
    assert outdone(points, keep=0.9) == {}


def test_twins_do_not_dominate_each_other_and_nan_is_left_alone():
    assert outdone({"one": Point(10, 0.4), "two": Point(10, 0.4)}, keep=0.1) == {}
    assert outdone({"one": Point(10, 0.4), "two": Point(5, math.nan)}, keep=0.1) == {}


points = st.builds(Point, st.integers(0, 4).map(float), st.integers(0, 4).map(lambda i: i / 4))


@given(st.lists(points, min_size=1, max_size=9), st.floats(0.05, 0.95))
def test_enough_saes_remain_and_a_remaining_one_dominates_each_that_stops(drawn, keep):
    named = {f"sae{i}": point for i, point in enumerate(drawn)}
    stopped = outdone(named, keep)
    going = named.keys() - stopped.keys()
    assert len(going) >= keep * len(named) - 1e-9
    for name, by in stopped.items():
        assert by and all(named[r].l0 <= named[name].l0 and named[r].fvu <= named[name].fvu and named[r] != named[name] for r in by)
        assert going & set(by)


@settings(deadline=None)
@given(st.data())
def test_verdicts_do_not_depend_on_the_order_in_which_histories_come(data):
    names, steps = [f"sae{i}" for i in range(6)], (4, 8)
    known = {name: {step: data.draw(points) for step in steps} for name in names}
    stopped = []
    for _ in range(2):
        halving, told = Halving({"group": names}, steps, 0.5), {}
        for name, step in data.draw(st.permutations([(name, step) for name in names for step in steps])):
            halving.know(name, step, known[name][step])
            for verdict in halving.verdicts():
                told |= {name: verdict.step for name in verdict.stopped}
        stopped.append(told)
    assert stopped[0] == stopped[1]


def test_a_rung_waits_for_all_rivals_that_are_not_gone():
    halving = Halving({"g": ["a", "b", "c"], "h": ["d"]}, (4,), 0.3)
    halving.know("a", 4, Point(10, 0.2))
    halving.know("b", 4, Point(20, 0.3))
    assert halving.verdicts() == []
    halving.gone("c", 0)
    (verdict,) = halving.verdicts()
    assert (verdict.rivals, verdict.step, verdict.stopped) == ("g", 4, {"b": ("a",)})
    assert halving.verdicts() == [], "decided once"


def test_a_stopped_sae_is_left_out_of_later_rungs_and_decided_rungs_stay():
    halving = Halving({"g": ["a", "b"]}, (4, 8), 0.5, decided=[("g", 4)])
    halving.know("a", 8, Point(10, 0.2))
    assert halving.verdicts() == []
    halving.gone("b", 4)
    (verdict,) = halving.verdicts()
    assert verdict.step == 8 and verdict.points.keys() == {"a"}


@pytest.mark.parametrize(("rungs", "steps", "every", "wanted"), [((0.25, 0.5), 100, 10, (30, 50)), ((0.5,), 976_563, 1000, (489_000,))])
def test_a_rung_is_the_next_row_of_the_history(rungs, steps, every, wanted):
    from scopemill.trainer.config.grid import HalvingConfig

    assert HalvingConfig(rungs=rungs).steps(steps, every) == wanted
