"""A ledger equals a brute force over all firings, bit for bit, whatever the order of shards and however they are merged."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.evidence_reference import Firing, as_firings, described, expected

from scopemill.evaluator.evidence.ledger import Ledger, Sizes

WIDTH, CONTEXT, SEQUENCES = 3, 6, 4
SIZES = Sizes(top=3, samples=2, tokens=4, window=4)
TOKENS = {shard: np.random.default_rng(shard).integers(0, 50, CONTEXT * SEQUENCES).astype(np.int32) for shard in range(5)}
# Ties, powers of two, neighbours of powers of two, subnormal and huge numbers.
values = st.sampled_from([0.5, 1.0, 1.5, 0.9999999403953552, 2.0, 2.0000002384185791]) | st.floats(
    min_value=0, exclude_min=True, allow_infinity=False, width=32
).filter(lambda v: v < 2.0**100)
cells = st.tuples(st.integers(0, 4), st.integers(0, CONTEXT * SEQUENCES - 1), st.integers(0, WIDTH - 1))
worlds = st.dictionaries(cells, values, max_size=120).map(lambda d: [Firing(*cell, value) for cell, value in d.items()])


def ledger_of(firings: list[Firing], shard: int, first: int = 0, width: int = WIDTH) -> Ledger:
    own = [f._replace(latent=f.latent - first) for f in firings if f.shard == shard and first <= f.latent < first + width]
    return Ledger.of(as_firings(own, width), shard, TOKENS[shard], CONTEXT, SIZES, seed=7, first=first)


def same(one: Ledger, other: Ledger) -> bool:
    return all(np.array_equal(x, vars(other)[name]) and x.dtype == vars(other)[name].dtype for name, x in vars(one).items())


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(firings=worlds, order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_any_order_and_any_tree_of_merges_is_the_brute_force(firings, order, cut):
    wanted = expected(firings, WIDTH, TOKENS, CONTEXT, SIZES, seed=7)
    halves = []
    for part in (order[:cut], order[cut:]):
        half = Ledger.empty(WIDTH, SIZES)
        for shard in part:
            half = half.merged(ledger_of(firings, shard))
        halves.append(half)
    whole = halves[0].merged(halves[1])
    assert [described(whole, latent) for latent in range(WIDTH)] == wanted
    in_turn = Ledger.empty(WIDTH, SIZES)
    for shard in range(5):
        in_turn = ledger_of(firings, shard).merged(in_turn)
    assert same(whole, in_turn)


@settings(max_examples=30, deadline=None)
@given(firings=worlds)
def test_a_slice_of_latents_is_a_ledger_of_its_own(firings):
    whole = ledger_of(firings, 2)
    assert same(whole.slice(1, 3), ledger_of(firings, 2, first=1, width=2))


def test_samples_of_an_interval_are_uniform():
    # Each of 40 equal firings is to be among the 2 kept of its interval as often as any other, over many seeds.
    firings = as_firings([Firing(0, place, 0, 1.0 + place / 1024) for place in range(CONTEXT * SEQUENCES)], 1)
    counts = np.zeros(CONTEXT * SEQUENCES)
    for seed in range(3000):
        ledger = Ledger.of(firings, 0, TOKENS[0], CONTEXT, SIZES, seed)
        held = ledger.places[0, SIZES.top :]
        counts[held[held >= 0]] += 1
    share = SIZES.samples / len(counts)
    assert counts.sum() == 3000 * SIZES.samples
    assert np.abs(counts / 3000 - share).max() < 5 * np.sqrt(share * (1 - share) / 3000)


def test_memory_does_not_grow_with_the_rows():
    random = np.random.default_rng(0)
    sizes = []
    ledger = Ledger.empty(WIDTH, SIZES)
    for shard in range(40):
        cells = random.choice(CONTEXT * SEQUENCES * WIDTH, 40, replace=False)
        firings = [Firing(shard, int(c) // WIDTH, int(c) % WIDTH, float(np.float32(random.random()))) for c in cells]
        tokens = random.integers(0, 50, CONTEXT * SEQUENCES).astype(np.int32)
        ledger = ledger.merged(Ledger.of(as_firings(firings, WIDTH), shard, tokens, CONTEXT, SIZES, 0))
        sizes.append(ledger.nbytes)
    most = Ledger.empty(WIDTH, SIZES).nbytes + WIDTH * SIZES.slots * SIZES.window * 6
    assert max(sizes) <= most and ledger.fired.sum() == 1600


@pytest.mark.parametrize("value", [1.0, 1.5, 3.4028234663852886e38, 1.401298464324817e-45])
def test_sums_of_many_equal_values_do_not_round(value):
    firings = as_firings([Firing(0, place, 0, value) for place in range(CONTEXT * SEQUENCES)], 1)
    one = Ledger.of(firings, 0, TOKENS[0], CONTEXT, SIZES, 0)
    got = described(one, 0)
    assert got["sum"] == 24 * value and got["fired"] == 24 and sum(got["bins"]) == 24
