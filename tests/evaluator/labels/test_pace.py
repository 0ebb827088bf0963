"""How many requests are under way: never more than allowed, more while answers are quick, fewer once one is late."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from scopemill.evaluator.labels.pace import Pace


def most_at_once(pace: Pace) -> int:
    """How many threads get a turn while none gives its own back."""
    stack, entered = [], 0
    while True:
        turn, got = pace.turn(), threading.Event()

        def enter(turn=turn, got=got):
            turn.__enter__()
            got.set()

        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        if not got.wait(0.05):
            for one in stack:
                one.__exit__(None, None, None)
            thread.join()
            turn.__exit__(None, None, None)
            return entered
        stack.append(turn)
        entered += 1


def test_requests_begin_alone_grow_with_quick_answers_and_halve_with_late_ones():
    pace = Pace(5, timeout=4.0)
    assert most_at_once(pace) == 1
    pace.answered(0.9)
    pace.answered(1.1)  # not quick: a quarter of the time limit is 1.0
    assert most_at_once(pace) == 2
    for _ in range(9):
        pace.answered(0.1)
    assert most_at_once(pace) == 5
    pace.late()
    assert most_at_once(pace) == 2


@given(st.integers(1, 8), st.lists(st.one_of(st.just(None), st.floats(0, 10)), max_size=40))
def test_at_least_one_and_never_more_than_wanted_may_be_under_way(most, answers):
    pace = Pace(most, timeout=8.0)
    for seconds in answers:
        pace.late() if seconds is None else pace.answered(seconds)
        assert 1 <= pace._allowed <= most
    for _ in range(most):
        pace.answered(0.0)
    assert pace._allowed == most
