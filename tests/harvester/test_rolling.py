"""The rolling bound against a plain model: what lies on disk stays bounded, and whoever waits for a shard gets it."""

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scopemill.harvester.rolling import Rolling


def sequence(shards: int, epochs: int, seed: int) -> list[int]:
    """Shards by position: a permutation of all for each epoch."""
    generator = random.Random(seed)
    return [shard for _ in range(epochs) for shard in generator.sample(range(shards), shards)]


class RollingMachine(RuleBasedStateMachine):
    """Trainers pass positions one by one, each only when its shard is there; harvesters come, fail and die."""

    @initialize(
        shards=st.integers(1, 9), epochs=st.integers(1, 3), ahead=st.integers(1, 12), seed=st.integers(0, 99), trainers=st.integers(1, 3)
    )
    def begin(self, shards, epochs, ahead, seed, trainers):
        self.order = sequence(shards, epochs, seed)
        self.rolling = Rolling(self.order.__getitem__, ahead, len(self.order))
        self.disk: set[int] = set()
        self.claimed: set[int] = set()
        self.trainers = dict.fromkeys(range(trainers), 0)

    def low(self) -> int:
        return min(self.trainers.values(), default=len(self.order))

    def delete(self, gone: list[int]) -> None:
        window = {self.order[p] for p in range(self.low(), min(self.low() + self.rolling.ahead, len(self.order)))}
        assert window.isdisjoint(gone), "what is within reach is kept"
        self.disk.difference_update(gone)

    @rule()
    def claim(self):
        free = self.rolling.ahead - len(self.disk) - len(self.claimed)
        missing = [s for s in self.order[self.low() : self.low() + self.rolling.ahead] if s not in self.disk | self.claimed]
        shard = self.rolling.claim()
        assert shard == (missing[0] if missing and free > 0 else None), "the nearest that is missing"
        if shard is not None:
            self.claimed.add(shard)

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), succeeds=st.booleans())
    def harvest_ends(self, data, succeeds):
        shard = data.draw(st.sampled_from(sorted(self.claimed)))
        self.claimed.remove(shard)
        if succeeds:
            self.disk.add(shard)
            self.delete(self.rolling.commit(shard))
        else:
            self.rolling.failed(shard)

    @precondition(lambda self: self.trainers)
    @rule(data=st.data(), most=st.integers(1, 6))
    def train(self, data, most):
        name = data.draw(st.sampled_from(sorted(self.trainers)))
        for _ in range(most):
            if self.trainers[name] < len(self.order) and self.order[self.trainers[name]] in self.disk:
                self.trainers[name] += 1
        self.delete(self.rolling.passed(self.low()))

    @precondition(lambda self: self.trainers)
    @rule(data=st.data(), back=st.integers(0, 8))
    def one_begins_again_before(self, data, back):
        name = data.draw(st.sampled_from(sorted(self.trainers)))
        self.trainers[name] = max(0, self.trainers[name] - back)
        self.delete(self.rolling.passed(self.low()))

    @precondition(lambda self: self.trainers)
    @rule(data=st.data())
    def one_is_given_up(self, data):
        del self.trainers[data.draw(st.sampled_from(sorted(self.trainers)))]
        self.delete(self.rolling.passed(self.low()))

    @precondition(lambda self: self.disk)
    @rule(data=st.data())
    def a_reader_takes_a_damaged_shard_back(self, data):
        self.disk.remove(data.draw(st.sampled_from(sorted(self.disk))))
        self.rolling.keep(self.disk)

    @rule()
    def the_driver_starts_again(self):
        """What was being made is forgotten; what is committed is found."""
        self.claimed.clear()
        self.rolling = Rolling(self.order.__getitem__, self.rolling.ahead, len(self.order), made=set(self.disk))
        self.delete(self.rolling.passed(self.low()))

    @invariant()
    def the_disk_is_bounded(self):
        if hasattr(self, "rolling"):
            assert len(self.disk) + len(self.claimed) <= self.rolling.ahead
            assert (self.rolling.made, self.rolling.making) == (self.disk, self.claimed)

    def teardown(self):
        """Liveness: with one harvester that works, every trainer comes to its end, and then nothing is left."""
        if not hasattr(self, "rolling"):
            return
        for shard in sorted(self.claimed):
            self.disk.add(shard)
            self.delete(self.rolling.commit(shard))
        self.claimed.clear()
        for _ in range(10 * len(self.order) + 10):
            for name, position in self.trainers.items():
                if position < len(self.order) and self.order[position] in self.disk:
                    self.trainers[name] += 1
            self.delete(self.rolling.passed(self.low()))
            if (shard := self.rolling.claim()) is not None:
                self.disk.add(shard)
                self.delete(self.rolling.commit(shard))
        assert all(position == len(self.order) for position in self.trainers.values()), "somebody waits for ever"
        assert not self.disk and self.rolling.done


TestRolling = RollingMachine.TestCase
TestRolling.settings = settings(max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))


def test_a_single_pass_makes_every_shard_once():
    order = sequence(40, 1, 3)
    rolling, made = Rolling(order.__getitem__, 4, 40), []
    for position in range(40):
        while (shard := rolling.claim()) is not None:
            made.append(shard)
            assert rolling.commit(shard) == []
        assert rolling.passed(position + 1) == [order[position]]
    assert made == order and rolling.done
