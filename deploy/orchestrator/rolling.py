"""Run rolling mode on Ray.

A bounded number of shards is harvested ahead of the trainers, and passed shards are deleted.
"""

import time
from collections.abc import Collection
from types import TracebackType
from typing import Any

import ray

from scopemill.activation_server.order import Order
from scopemill.deploy.cluster.ray_cluster import needs
from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.orchestrator.actor_group import ActorGroup, get
from scopemill.deploy.plan.sweep_plan import Pass
from scopemill.deploy.progress import Reporter
from scopemill.harvester.actor import HarvesterActor
from scopemill.harvester.rolling import Rolling
from scopemill.harvester.task import IN_FLIGHT
from scopemill.proto.dataset import DatasetManifest, RollingRecord, committed_shards
from scopemill.proto.errors import InputError
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.shards import remove_shard
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.training import checkpoint

LOOK_SECONDS = 1.0  # between looks for new checkpoints


class RollingHarvest:
    """Harvest the shards that trainers need, for the length of a ``with``.

    The caller calls ``look`` every now and then. A trainer may still need every shard from its newest checkpoint on, because a
    restarted trainer resumes there.
    """

    def __init__(self, plan: Pass, manifest: DatasetManifest, targets: Targets, reporter: Reporter):
        config = plan.config.harvest
        if config.rolling is None:
            raise InputError(
                "harvest.rolling is not set, so there is no bound on the shards that may lie on disk: set it to a number of shards"
            )
        self._plan, self._manifest, self._reporter = plan, manifest, reporter
        self._order = Order(manifest, plan.stream(plan.saes[0].hooks))  # the shards' order is the same for every stream
        end = max(self._order.positions(sae.config.steps - 1).stop for sae in plan.saes)
        made = committed_shards(plan.bucket, manifest.dataset)
        self._rolling = Rolling(self._order.shard_at, config.rolling, end, made=made)
        options = HarvesterActor.options(**needs(config))
        self._group = ActorGroup("harvester", [options.remote(plan.harvest) for _ in range(config.actors)], targets)
        self._free = self._group.actors * IN_FLIGHT
        self._calls: dict[Any, tuple[Any, int]] = {}  # by Ray's reference: the harvester, and the shard in work
        self._training: set[str] = set()
        self._next_look = 0.0

    def __enter__(self) -> "RollingHarvest":
        self._group.__enter__()
        announce(self._plan.bucket, self._manifest.dataset, self._rolling.low)
        self._reporter.say(
            f"rolling: {self._rolling.end} shards in turn, at most {self._rolling.ahead} on disk, {len(self._rolling.made)} committed now"
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._group.__exit__(kind, error, traceback)
        if kind is None:  # all SAEs are trained to the end, so every shard is spent
            self._advance(self._rolling.end)

    def look(self, training: Collection[str]) -> None:
        """Note finished shards and new checkpoints, delete passed shards, and start free harvesters.

        ``training`` names the SAEs in training now.
        """
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0) if self._calls else ([], [])
        for ref in ready:
            actor, shard = self._calls.pop(ref)
            get(ref)
            self._free.append(actor)
            self._delete(self._rolling.commit(shard))
        if time.monotonic() >= self._next_look or not self._training.issuperset(training):
            self._training, self._next_look = set(training), time.monotonic() + LOOK_SECONDS
            self._rolling.keep(committed_shards(self._plan.bucket, self._manifest.dataset))
            self._advance(self._low())
        while self._free and (claimed := self._rolling.claim()) is not None:
            actor = self._free.pop(0)
            self._calls[actor.harvest.remote(claimed)] = (actor, claimed)
        self._group.pending = list(self._calls)

    def _low(self) -> int:
        """Return the first position that an SAE in training may still need."""
        saes = [sae for sae in self._plan.saes if sae.name in self._training]
        steps = [checkpoint.newest(self._plan.bucket, sae.layout) for sae in saes]
        return min((self._order.positions(step).start for step in steps), default=self._rolling.low)

    def _advance(self, low: int) -> None:
        before = self._rolling.low
        passed = self._rolling.passed(low)
        if self._rolling.low != before:  # readers have to know the new bound before a shard behind it goes
            announce(self._plan.bucket, self._manifest.dataset, self._rolling.low)
        self._delete(passed)

    def _delete(self, shards: list[int]) -> None:
        for shard in shards:
            remove_shard(self._plan.bucket, self._manifest.dataset, shard)


def check_all_fit(plan: Pass, trainers: int) -> None:
    """Raise InputError unless all trainers and harvesters fit into the cluster at the same time."""
    harvest, train, have = plan.config.harvest, plan.config.train, ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, need in (
        ("CPU", harvest.actors * harvest.cpus + trainers * train.cpus),
        ("GPU", harvest.actors * harvest.gpus + trainers * train.gpus),
    ):
        if need > have.get(kind, 0):
            raise InputError(
                f"harvest.rolling: {harvest.actors} harvesters and {trainers} trainers run at the same time and need {need:g} {kind}s, but "
                f"the cluster has {have.get(kind, 0):g}: lower train.{kind.lower()}s or harvest.actors, or leave harvest.rolling out"
            )


def announce(bucket: Bucket, dataset: str, low: int) -> None:
    """Record that a dataset is in rolling mode and that positions before ``low`` are gone."""
    bucket.write(DatasetLayout(dataset).rolling, checksummed_record(RollingRecord(low=low).model_dump()))
