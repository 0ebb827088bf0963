"""A sweep's training on Ray: carries out what the schedule decides, and watches over it."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError
from rich.table import Table

from scopemill.activation_server.actor import ServerActor, Whereabouts
from scopemill.deploy.cluster.ray_cluster import needs, on_node, room_for
from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.orchestrator.actor_group import POLL_SECONDS, ActorGroup, ask, get, ours
from scopemill.deploy.orchestrator.early_stopping import EarlyStopping
from scopemill.deploy.orchestrator.pool import Pool, Slot
from scopemill.deploy.orchestrator.schedule import Ending, Schedule
from scopemill.deploy.plan.cohorts import streams_at_once
from scopemill.deploy.plan.sweep_plan import Pass, PlannedSae, entries
from scopemill.deploy.progress import Reporter
from scopemill.proto import metrics
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import Conflict, InputError, RankLost, ScopemillError
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.training import checkpoint
from scopemill.trainer.worker.actor import TrainerActor
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.sae_trainer import Outcome, Progress

CALLS_PER_SECOND = 40.0  # that ask trainers how far they are, however many there are
CLOSE_SECONDS = 5.0  # for the processes of a wide SAE to end when one of them has died


@dataclass(eq=False)
class Group:
    """SAEs of one stream that one process trains together, or a wide one that several do: the first of the slots leads.

    To its node's server it is a consumer with the name of the first SAE.
    """

    names: list[str]
    slots: list[Slot]
    settled: set[str] = field(default_factory=set)  # of whom it is known how they ended
    calls: dict[Any, Slot] = field(default_factory=dict)  # by Ray's reference: those that have not returned
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # what the leader's call returned
    errors: list[ScopemillError] = field(default_factory=list)  # of calls that failed, in the order of their ends

    @property
    def consumer(self) -> str:
        return self.names[0]

    @property
    def leader(self) -> Slot:
        return self.slots[0]

    def ended(self) -> dict[str, Outcome]:
        """How it went with each SAE, once all calls have returned. For a leader that was left alone the first who left it says why."""
        why = next((error for error in self.errors if not isinstance(error, RankLost)), next(iter(self.errors), None))
        found = {name: self.outcomes.get(name, why) for name in self.names}
        return {name: why if why and isinstance(outcome, RankLost) else outcome for name, outcome in found.items()}


class Training:
    """``run`` trains SAEs until each is finished, failed for good, or stopped because rivals outdo it."""

    def __init__(self, plan: Pass, manifest: DatasetManifest, todo: list[PlannedSae], targets: Targets, reporter: Reporter):
        self._plan, self._manifest, self._targets, self._reporter = plan, manifest, targets, reporter
        train = plan.config.train
        self._saes = {sae.name: sae for sae in todo}
        self._at_once = min(train.at_once, room_for(train), plan.trainers(todo))
        self._streams = streams_at_once(entries(train, todo), self._at_once, train.group)
        self._schedule = Schedule(entries(train, todo), self._at_once, self._streams, train.retries, train.group)
        self._stopping = EarlyStopping(plan, todo)
        self._leaving: dict[str, str] = {}  # who has been told to stop early, and why
        self._runs: dict[Any, Group] = {}  # by Ray's reference of the call
        self._servers: dict[str, Any] = {}  # by node
        self._ask_again = 0.0

    def run(self, look: Callable[[Collection[str]], None] = lambda training: None) -> dict[str, Ending]:
        """How each SAE ended. ``look`` is called every now and then, and before one begins, with those in training."""
        saes, steps = self._saes.values(), self._plan.config.train.steps
        streams = len({sae.hooks for sae in saes})
        title = f"training {len(saes)} SAEs in {self._at_once} trainers, {steps:,} steps each, from {streams} shared streams"
        with (
            ActorGroup("activation_server", [], self._targets) as self._server_group,
            ActorGroup("trainer", [self._trainer() for _ in range(self._at_once)], self._targets) as trainers,
            self._reporter.phase(title, {sae.name: sae.config.steps for sae in saes}),
        ):
            self._pool = Pool(trainers, self._trainer)
            while not self._schedule.done:
                for cohort in self._schedule.start(self._pool.free):
                    look(self._schedule.training)
                    self._begin(cohort)
                trainers.open = list(self._runs)
                self._wait()
                self._watch()
                self._stop_early()
                for state, count in self._schedule.counts().items():
                    metrics.SWEEP_SAES.labels(state).set(count)
                look(self._schedule.training)
        return self._schedule.endings

    def _trainer(self) -> Any:
        plan, train = self._plan, self._plan.config.train
        return TrainerActor.options(**needs(train)).remote(plan.config.bucket, max(1, int(train.cpus)), train.gpus > 0)

    def _begin(self, cohort: list[list[str]]) -> None:
        """Start groups of one stream. Those on one node share its server; before any is there, that is told where each will begin."""
        stream, begun = self._plan.stream(self._saes[cohort[0][0]].hooks), self._with_slots(cohort)
        nodes = dict.fromkeys(group.leader.node for group in begun)
        coming = {node: self._server(node) for node in nodes if node not in self._servers}  # all of them while the first is waited for
        for node in nodes:
            here = [group for group in begun if group.leader.node == node]
            try:
                where = self._expecting_server(node, coming.get(node), stream, {group.consumer: self._cursor(group) for group in here})
            except ScopemillError as error:
                for group in here:
                    for slot in group.slots:
                        self._pool.give_back(slot)
                    self._settle(group, dict.fromkeys(group.names, error))
                continue
            for group in here:
                self._call(group, where)

    def _with_slots(self, cohort: list[list[str]]) -> list[Group]:
        """A wide SAE's on one node, where that is possible; then those of the others."""
        parts = {names[0]: self._plan.config.train.parts(self._saes[names[0]].config.width) for names in cohort}
        wide = [Group(names, self._pool.take(parts[names[0]])) for names in cohort if parts[names[0]] > 1]
        others = [names for names in cohort if parts[names[0]] == 1]
        return wide + [Group(names, [slot]) for names, slot in zip(others, self._pool.take(len(others)), strict=True)]

    def _call(self, group: Group, where: Whereabouts) -> None:
        keys, assignments = self._plan.config.server.keys, [self._assignment(self._saes[name]) for name in group.names]
        leader, *followers = group.slots
        if not followers:
            group.calls[leader.actor.run.remote(assignments, where, keys)] = leader
        else:
            address, parts = leader.actor.meet.remote(len({slot.node for slot in group.slots}) == 1), len(group.slots)
            group.calls[leader.actor.lead.remote(*assignments, where, keys, address, parts)] = leader
            for rank, slot in enumerate(followers, 1):
                group.calls[slot.actor.follow.remote(*assignments, address, rank, parts)] = slot
        self._runs |= dict.fromkeys(group.calls, group)

    def _cursor(self, group: Group) -> int:
        """The batch at which a group goes on: the first that one of its SAEs wants."""
        return min(checkpoint.newest(self._plan.bucket, self._saes[name].layout) for name in group.names)

    def _server(self, node: str) -> Any:
        return ServerActor.options(**on_node(node)).remote(self._plan.config.bucket, self._plan.config.server, self._streams)

    def _expecting_server(self, node: str, coming: Any, stream: StreamSpec, cursors: dict[str, int]) -> Whereabouts:
        """The server of a node, or the one that is ``coming`` up there, which knows of trainers that will come. One that has died for
        good is replaced."""
        for known in (self._servers.get(node, coming), None):
            server = known or self._server(node)
            if server is not self._servers.get(node):
                self._server_group.replace(self._servers.get(node), server)
                self._servers[node] = server
            try:
                ray.get(server.expect.remote(stream, cursors, self._plan.config.train.steps))
            except ActorDiedError:
                continue
            except RayError as error:
                raise ours(error) from error
            return Whereabouts(server, get(server.address.remote()))
        raise ScopemillError(f"the activation server of node {node} died as soon as it was started")

    def _wait(self) -> None:
        """Until something has ended, or for a moment; take note of all that has."""
        calls = [*self._runs, *self._pool.coming]
        if not calls:  # none of a cohort could begin
            return
        ray.wait(calls, num_returns=1, timeout=POLL_SECONDS)
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        self._pool.welcome(ready)
        for ref in ready:
            if ref in self._runs:
                self._returned(ref, self._runs.pop(ref))

    def _returned(self, ref: Any, group: Group) -> None:
        """A trainer's call has returned. If a process of several has died, the others cannot go on, and most of them know."""
        slot, died = group.calls.pop(ref), False
        try:
            group.outcomes |= ray.get(ref) or {}
        except RayError as error:
            group.errors.append(ours(error))
            died = isinstance(error, RayActorError)
        if died:
            ray.kill(slot.actor)  # if Ray has started it again: it must not take calls while it is replaced
            self._pool.replace(slot)
            _, waiting = ray.wait(list(group.calls), num_returns=len(group.calls), timeout=CLOSE_SECONDS) if group.calls else ([], [])
            for call in waiting:
                ray.kill(group.calls[call].actor)
        else:
            self._pool.give_back(slot)
        if group.calls:
            return
        outcomes = group.ended()
        if any(isinstance(outcome, ScopemillError) for outcome in outcomes.values()):  # it may not have come as far as its stream
            stream = self._plan.stream(self._saes[group.consumer].hooks)
            self._servers[group.leader.node].expect_no_more.remote(stream, group.consumer)
        self._settle(group, outcomes)

    def _settle(self, group: Group, outcomes: dict[str, Outcome]) -> None:
        """Take note of how SAEs of a group ended, once of each."""
        for name in outcomes.keys() - group.settled:
            group.settled.add(name)
            if isinstance(outcome := outcomes[name], ScopemillError):
                self._failed(name, outcome)
            else:
                self._ended(name, outcome)

    def _ended(self, name: str, steps: int) -> None:
        self._reporter.update(name, steps)
        if self._stopping.steps:
            self._stopping.know_history(name)
        if steps < self._saes[name].config.steps:
            self._schedule.stopped(name, self._leaving.get(name, "its trainer was asked to stop"))
        else:
            self._schedule.finished(name)

    def _failed(self, name: str, error: ScopemillError) -> None:
        if name in self._leaving:
            self._schedule.stopped(name, self._leaving[name])
        elif self._schedule.failed(name, str(error), is_transient=not isinstance(error, (InputError, Conflict))):
            self._reporter.say(f"{name} will be tried again after the others: {error}")
        else:
            self._stopping.failed(name)

    def _watch(self) -> None:
        """Ask trainers how far they are; the more there are, the more rarely."""
        if time.monotonic() < self._ask_again:
            return
        groups = self._groups
        self._ask_again = time.monotonic() + max(POLL_SECONDS, len(groups) / CALLS_PER_SECOND)
        told: list[list[Progress] | None] = ask([group.leader.actor.progress.remote(self._stopping.steps) for group in groups])
        for group, answer in zip(groups, told, strict=True):
            of_group = [progress for progress in answer or () if progress.name in group.names]  # and not still the SAEs before
            for progress in of_group:
                self._note(group, progress)
            ended = {progress.name: progress.outcome for progress in of_group if progress.outcome is not None}
            if len(ended) < len(of_group):  # else its call returns by now
                self._settle(group, ended)

    def _note(self, group: Group, progress: Progress) -> None:
        if progress.outcome is None and (progress.name in self._leaving or progress.name in group.settled):
            group.leader.actor.leave.remote(progress.name)  # again: a process that was just started anew does not know
        if progress.name not in group.settled:
            row = progress.last
            self._reporter.update(progress.name, progress.step, f"L0 {row.l0:6.1f}  FVU {row.fvu:.3f}" if row else "")
            self._stopping.know(progress.name, progress.at)

    def _stop_early(self) -> None:
        for name, why in self._stopping.decide().items():
            if name in self._schedule.endings:
                continue  # it was finished before its rivals came so far
            if self._schedule.withdraw(name, why):
                continue
            self._leaving[name] = why
            self._reporter.say(f"{name} is stopped: {why}")
            for group in self._groups:
                if name in group.names:
                    group.leader.actor.leave.remote(name)

    @property
    def _groups(self) -> list[Group]:
        """Those in work."""
        return list(dict.fromkeys(self._runs.values()))

    def _assignment(self, sae: PlannedSae) -> Assignment:
        plan, manifest = self._plan, self._manifest
        inputs, targets = (tuple(manifest.hook(hook.name) for hook in hooks) for hooks in (sae.inputs, sae.targets))
        metadata = {"context_size": manifest.context_length, "dataset_path": plan.harvest.identity["corpus.source"]}
        provenance = {
            "sweep": plan.config.name,
            "dataset": plan.harvest.dataset,
            "identity": plan.harvest.identity,
            "scales": {hook.name: hook.scale for hook in inputs + targets},
            "sae": sae.config.model_dump(mode="json"),
        }
        return Assignment(
            sae.name,
            sae.layout.root,
            inputs,
            targets,
            plan.stream(sae.hooks),
            sae.config,
            plan.card.name,
            metadata,
            provenance,
            plan.config.train.monitors,
        )


def summary(endings: dict[str, Ending]) -> Table:
    """How many SAEs ended how; those that failed or were stopped early one by one."""
    counts = Counter(ending.state for ending in endings.values())
    table = Table(title=", ".join(f"{n} {state}" for state, n in sorted(counts.items())), title_justify="left", box=None, pad_edge=False)
    for column in ("SAE", "ended", "tries", "why"):
        table.add_column(column, overflow="fold")
    for name, ending in endings.items():
        if ending.state != "finished":
            table.add_row(name, ending.state, str(ending.tries), ending.why)
    return table
