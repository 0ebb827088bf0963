"""Passes: every SAE's hooks are whole in one, each fits the budgets, and no two would fit together."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scopemill.deploy.plan.passes import GIB, Budget, pass_of, plan_passes
from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook

WIDTHS = {"attn_z": 2, "mlp_out": 3, "resid_post": 3}
LABELS = 1
hooks = st.builds(Hook, st.integers(0, 5), st.sampled_from(sorted(WIDTHS)))
connections = st.lists(st.lists(hooks, min_size=1, max_size=4, unique=True).map(tuple), min_size=1, max_size=30)


def row_bytes(some) -> int:
    return LABELS + sum(WIDTHS[hook.site] for hook in set(some))


def budget(room: float, rows: int = 1000, field: str = "harvest.disk_gib") -> Budget:
    """That has room for so many bytes a row."""
    return Budget(field, room * rows / GIB, rows)


@given(connections, st.integers(1 + 4 * 3, 60), st.randoms())
def test_each_connection_is_whole_in_a_pass_that_fits_and_no_two_passes_fit_together(wanted, room, random):
    passes = plan_passes(wanted, [budget(room + 0.5)], row_bytes)
    for connection in wanted:
        assert set(connection) <= set(passes[pass_of(connection, passes)])
    assert {hook for hooks in passes for hook in hooks} == {hook for connection in wanted for hook in connection}
    assert all(row_bytes(one) <= room for one in passes)
    assert all(any(pass_of(connection, passes) == number for connection in wanted) for number in range(len(passes)))
    assert all(row_bytes({*one, *other}) > room for one, other in combinations(passes, 2))
    assert [hooks[-1].layer for hooks in passes] == sorted(hooks[-1].layer for hooks in passes)
    shuffled = random.sample(wanted, len(wanted))
    assert plan_passes(shuffled, [budget(room + 0.5)], row_bytes) == passes


@given(st.integers(1, 40), st.integers(1, 9))
def test_hooks_of_one_width_take_as_few_passes_as_there_can_be_layer_by_layer(layers, of_each):
    every = [Hook(layer, "resid_post") for layer in range(layers)]
    passes = plan_passes([(hook,) for hook in every], [budget(LABELS + 3 * of_each + 0.5)], row_bytes)
    assert [hook for hooks in passes for hook in hooks] == every
    assert len(passes) == -(-layers // of_each)


def test_the_tighter_of_two_budgets_counts():
    every = [(Hook(layer, "resid_post"),) for layer in range(4)]
    memory = budget(LABELS + 6.5, rows=7, field="harvest.memory_gib")
    assert len(plan_passes(every, [budget(100), memory], row_bytes)) == len(plan_passes(every, [memory], row_bytes)) == 2


def test_a_connection_that_fits_no_pass_is_refused_with_its_hooks_and_the_budget():
    crosscoder = tuple(Hook(layer, "mlp_out") for layer in range(4))
    with pytest.raises(
        InputError, match=r"harvest.memory_gib: .* blocks.0.hook_mlp_out, .*blocks.3.hook_mlp_out take .* lower harvest.rows"
    ):
        plan_passes([(Hook(0, "attn_z"),), crosscoder], [budget(100), budget(12, field="harvest.memory_gib")], row_bytes)
