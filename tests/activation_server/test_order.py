"""The order of rows: a pure function that uses every row once an epoch, and that never changes."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scopemill.activation_server.order import Order, Piece
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import InputError
from scopemill.proto.wire import StreamSpec


def order(rows: int, shards: int, batch: int, k: int, seed: int = 0) -> Order:
    manifest = DatasetManifest.model_construct(dataset="d", rows_per_shard=rows, shards=shards)
    return Order(manifest, StreamSpec("d", ("hook",), batch, seed, k))


def groups_of(shards: int, k: int) -> list[int]:
    """The shards of each group, by numpy's own even split into as few groups of at most k as there can be."""
    return [len(group) for group in np.array_split(range(shards), math.ceil(shards / k))]


@st.composite
def plans(draw) -> tuple[int, int, int, int, int]:
    rows, shards, k = draw(st.integers(1, 40)), draw(st.integers(1, 11)), draw(st.integers(1, 14))
    batch = draw(st.integers(1, groups_of(shards, k)[0] * rows))
    return rows, shards, batch, k, draw(st.integers(0, 2**63 - 1))


def epoch_of(order: Order, epoch: int) -> list[tuple[Piece, ...]]:
    n = order.batches_per_epoch
    return [order.pieces(k) for k in range(epoch * n, (epoch + 1) * n)]


def rows_of(pieces: tuple[Piece, ...]) -> list[tuple[int, int]]:
    return [(piece.shard, row) for piece in pieces for row in range(piece.start, piece.stop)]


def listed(order: Order, k: int) -> list[tuple[int, int, int]]:
    return [(piece.shard, piece.start, piece.stop) for piece in order.pieces(k)]


@given(plans(), st.integers(0, 3))
def test_an_epoch_uses_each_row_once_but_for_less_than_a_batch_per_group(plan, epoch):
    rows, shards, batch, k, _ = plan
    used = Counter(row for pieces in epoch_of(order(*plan), epoch) for row in rows_of(pieces))
    assert set(used.values()) <= {1}
    assert used.keys() <= {(s, r) for s in range(shards) for r in range(rows)}
    # Each group loses the rows that fill no batch, and nothing else is lost.
    assert len(used) == sum(group * rows - (group * rows) % batch for group in groups_of(shards, k))


@given(plans(), st.integers(0, 10**6))
def test_every_batch_has_exactly_its_rows(plan, index):
    assert len(rows_of(order(*plan).pieces(index))) == plan[2]


@given(plans(), st.integers(0, 3))
def test_a_shard_is_read_from_top_to_bottom_without_a_gap(plan, epoch):
    reached = Counter()
    for pieces in epoch_of(order(*plan), epoch):
        assert len({piece.shard for piece in pieces}) == len(pieces)  # one run of rows per shard and batch
        for piece in pieces:
            assert piece.start == reached[piece.shard] < piece.stop
            reached[piece.shard] = piece.stop
    assert all(reached[shard] <= plan[0] for shard in reached)


@given(plans(), st.integers(0, 3))
def test_a_batch_mixes_its_shards_evenly(plan, epoch):
    rows, shards, batch, k, _ = plan
    group_of_batch = [group for group in groups_of(shards, k) for _ in range(group * rows // batch)]
    for index, pieces in enumerate(epoch_of(order(*plan), epoch)):
        group = group_of_batch[index]
        sizes = [piece.stop - piece.start for piece in pieces] + [0] * (group - len(pieces))
        assert len(sizes) == group
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("shards", "k", "groups"), [(9, 4, [3, 3, 3]), (10, 4, [4, 3, 3]), (8, 4, [4, 4]), (3, 8, [3])])
def test_the_last_batches_of_an_epoch_are_mixed_like_the_first(shards, k, groups):
    o = order(rows=8, shards=shards, batch=8, k=k)
    seen = [len({piece.shard for piece in pieces}) for pieces in epoch_of(o, 0)]
    assert seen == [group for group in groups for _ in range(group)]


@given(plans(), st.integers(0, 3))
def test_no_more_than_k_shards_are_read_side_by_side(plan, epoch):
    o = order(*plan)
    n = o.batches_per_epoch
    for index in range(epoch * n, (epoch + 1) * n):
        beside = o.shards(index)
        assert len(beside) <= plan[3]
        assert {piece.shard for piece in o.pieces(index)} <= set(beside)
    groups = [o.shards(index) for index in range(epoch * n, (epoch + 1) * n)]
    changes = sum(a != b for a, b in pairwise(groups))
    assert changes < -(-plan[1] // plan[3])  # a group, once left, is not read again


@given(plans(), st.lists(st.integers(0, 10**5), min_size=1, max_size=20), st.randoms())
def test_batch_k_is_the_same_whoever_asks_and_in_whatever_order(plan, indices, random):
    o = order(*plan)
    first = {index: o.pieces(index) for index in indices}
    random.shuffle(indices)
    fresh = order(*plan)
    assert {index: fresh.pieces(index) for index in indices} == first
    assert {index: o.pieces(index) for index in indices} == first


@given(st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_epochs_and_seeds_differ_in_the_order_of_shards(seed, epoch):
    def shards(seed: int, epoch: int) -> list[int]:
        o = order(rows=4, shards=40, batch=4, k=1, seed=seed)
        return [pieces[0].shard for pieces in epoch_of(o, epoch)]

    assert sorted(shards(seed, epoch)) == list(range(40))
    assert shards(seed, epoch) != shards(seed, epoch + 1)  # 1 in 40! that they agree by chance
    assert shards(seed, epoch) != shards((seed + 1) % 2**63, epoch)


@given(plans())
def test_more_shards_side_by_side_than_there_are_is_all_of_them(plan):
    rows, shards, batch, k, seed = plan
    assume(k >= shards)
    wide, exact = order(*plan), order(rows, shards, batch, shards, seed)
    assert wide.batches_per_epoch == exact.batches_per_epoch == shards * rows // batch
    assert epoch_of(wide, 1) == epoch_of(exact, 1)


def test_the_order_is_pinned_for_ever():
    """Whoever changes these numbers changes what every unfinished training run sees next."""
    o = order(rows=10, shards=5, batch=6, k=3, seed=7)
    assert o.batches_per_epoch == 8
    assert [listed(o, k) for k in (0, 1, 4, 5, 7, 8, 8 * 1000 + 2)] == [
        [(4, 0, 2), (1, 0, 2), (3, 0, 2)],
        [(4, 2, 4), (1, 2, 4), (3, 2, 4)],
        [(4, 8, 10), (1, 8, 10), (3, 8, 10)],
        [(2, 0, 3), (0, 0, 3)],
        [(2, 6, 9), (0, 6, 9)],
        [(3, 0, 2), (1, 0, 2), (2, 0, 2)],
        [(1, 4, 6), (0, 4, 6), (3, 4, 6)],
    ]
    uneven = order(rows=10, shards=3, batch=7, k=3, seed=2**63 - 1)
    assert [listed(uneven, k) for k in range(4)] == [
        [(1, 0, 2), (2, 0, 2), (0, 0, 3)],
        [(1, 2, 4), (2, 2, 5), (0, 3, 5)],
        [(1, 4, 7), (2, 5, 7), (0, 5, 7)],
        [(1, 7, 9), (2, 7, 9), (0, 7, 10)],
    ]


def test_a_batch_larger_than_the_shards_side_by_side_is_refused_in_a_sentence():
    order(rows=10, shards=5, batch=30, k=3)
    with pytest.raises(InputError, match=r"a batch of 31 rows is more than dataset 'd' reads side by side \(3 shards of 10 rows\)"):
        order(rows=10, shards=5, batch=31, k=3)
    with pytest.raises(InputError, match="5 shards of 10 rows"):
        order(rows=10, shards=5, batch=51, k=100)
