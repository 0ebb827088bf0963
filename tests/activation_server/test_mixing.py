"""How well batches are mixed: 1 for a perfect shuffle, and more where rows of a batch come from neighbouring text."""

from itertools import combinations

import numpy as np
import pytest

from scopemill.activation_server.mixing import measure_mixing, mixing
from scopemill.activation_server.order import Order, group_sizes
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector
from scopemill.proto.wire import StreamSpec

ROWS, OF_ONE_DOCUMENT = 4096, 64


def manifest(shards: int) -> DatasetManifest:
    hook = HookStats(name="blocks.0.hook_resid_post", d=1, scale=1.0, mean=pack_vector(np.zeros(1)), norm_limit=None)
    return DatasetManifest(
        dataset="d", identity={}, model="m", context_length=64, dtype="float32", hooks=(hook,), rows_per_shard=ROWS, shards=shards, seed=0,
        calibration_rows=1,
    )  # fmt: skip


def stream(batch_size: int, side_by_side: int) -> StreamSpec:
    return StreamSpec(dataset="d", hooks=("blocks.0.hook_resid_post",), batch_size=batch_size, shards_side_by_side=side_by_side, seed=0)


def documents(shards: int, shuffled: bool) -> dict[int, np.ndarray]:
    """Documents one after another, cut into shards, and each shard's rows shuffled as a harvest does."""
    text = np.arange(shards * ROWS) // OF_ONE_DOCUMENT
    random = np.random.default_rng(0)
    return {i: random.permutation(part) if shuffled else part for i, part in enumerate(text.reshape(shards, ROWS))}


@pytest.mark.parametrize(("shards", "side_by_side"), [(9, 4), (8, 8), (7, 3), (3, 1)])
def test_batches_of_shuffled_shards_are_a_perfect_shuffle_of_their_group(shards, side_by_side):
    found = mixing(Order(manifest(shards), stream(1024, side_by_side)), shards, documents(shards, shuffled=True))
    group = group_sizes(shards, side_by_side)[0]
    assert (found.shards, found.group, found.dataset) == (group, group, shards)
    assert found.within_group == pytest.approx(1, abs=0.03)
    assert found.within_dataset == pytest.approx(shards / group, rel=0.03)
    assert f"of {group} of the {group} shards" in found.sentence()


def test_rows_in_the_order_of_the_text_are_told_from_shuffled_ones():
    found = mixing(Order(manifest(4), stream(256, 4)), 4, documents(4, shuffled=False))
    # 64 rows of each shard, all of one document: 4 x 64 x 63 of the 256 x 255 pairs
    expected = (4 * 64 * 63 / (256 * 255)) / (OF_ONE_DOCUMENT - 1) * (4 * ROWS - 1)
    assert found.within_group == pytest.approx(expected, rel=1e-9)
    assert found.within_group > 50


def test_a_batch_that_leaves_shards_out_is_told():
    found = mixing(Order(manifest(8), stream(4, 8)), 8, documents(8, shuffled=True))
    assert (found.shards, found.group) == (4, 8)


def test_pairs_are_counted_as_one_would_by_hand():
    order, labels = Order(manifest(2), stream(64, 2)), documents(2, shuffled=True)
    rows = np.concatenate([labels[p.shard][p.start : p.stop] for p in order.pieces(0)])
    by_hand = np.mean([a == b for a, b in combinations(rows.tolist(), 2)])
    only_first = {shard: np.tile(labels[shard][:32], ROWS // 32) for shard in labels}  # every batch is the first one
    again = mixing(order, 2, only_first)
    whole = np.concatenate([only_first[0], only_first[1]])
    counts = np.unique(whole, return_counts=True)[1]
    likely = (counts * (counts - 1)).sum() / (len(whole) * (len(whole) - 1))
    assert again.within_group == pytest.approx(by_hand / likely, rel=1e-9)
    assert mixing(order, 2, labels).within_group == pytest.approx(1, abs=0.3)


def test_shards_that_are_not_there_are_not_measured(bucket):
    assert measure_mixing(bucket, manifest(2), stream(64, 2)) is None
