"""Slots are taken on as few nodes as possible."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from scopemill.deploy.orchestrator.pool import packed


def test_the_tightest_node_with_room_is_taken_else_the_roomiest_first():
    free = Counter(a=8, b=3, c=2)
    assert packed(free, 2) == {"c": 2}
    assert packed(free, 3) == {"b": 3}
    assert packed(free, 10) == {"a": 8, "c": 2}


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 5), min_size=1), st.data())
def test_as_many_as_wanted_on_the_fewest_nodes(sizes, data):
    free = Counter(sizes)
    wanted = data.draw(st.integers(1, free.total()))
    taken = packed(free, wanted)
    assert taken.total() == wanted and taken <= free
    fewest = next(n for n in range(1, len(free) + 1) if sum(size for _, size in free.most_common(n)) >= wanted)
    assert len(taken) == fewest
