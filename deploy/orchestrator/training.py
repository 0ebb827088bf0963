"""Train the SAEs of a pass on Ray.

The groups that the schedule chooses are started, and their progress is watched.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from scopemill.activation_server.actor import Whereabouts
from scopemill.deploy.cluster.ray_cluster import needs, room_for
from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.orchestrator.actor_group import POLL_SECONDS, ActorGroup, as_scopemill_error, ask
from scopemill.deploy.orchestrator.desk import Desk, row_fields
from scopemill.deploy.orchestrator.early_stopping import EarlyStopping
from scopemill.deploy.orchestrator.group import Group, assignment_of
from scopemill.deploy.orchestrator.node_servers import NodeServers
from scopemill.deploy.orchestrator.pool import Pool
from scopemill.deploy.orchestrator.schedule import SaeOutcome, Schedule
from scopemill.deploy.plan.cohorts import streams_at_once
from scopemill.deploy.plan.progress import SaeProgress
from scopemill.deploy.plan.state import PassState
from scopemill.deploy.plan.sweep_plan import Pass, PlannedSae, entries
from scopemill.deploy.progress import Reporter
from scopemill.proto import metrics
from scopemill.proto.errors import Conflict, InputError, ScopemillError, ShardLost
from scopemill.trainer.training import checkpoint
from scopemill.trainer.worker.actor import TrainerActor
from scopemill.trainer.worker.sae_trainer import Outcome, Progress

PROGRESS_CALLS_PER_SECOND = 40.0  # to all trainers together, however many there are
ON_REQUEST = "stopped on request"
CLOSE_SECONDS = 5.0  # for the other ranks of a wide SAE to end when one has died


class Training:
    """Train SAEs until each has an outcome.

    An SAE is finished, failed for good, interrupted by a lost shard, or stopped because rivals dominate it.
    """

    def __init__(self, plan: Pass, state: PassState, todo: list[PlannedSae], targets: Targets, reporter: Reporter, desk: Desk):
        self._plan, self._manifest, self._targets, self._reporter = plan, state.harvested_manifest(), targets, reporter
        self._desk = desk
        self._rows: dict[str, SaeProgress] = {}  # the newest progress of SAEs that have started
        self._first_cursors = {sae.name: state.saes[sae.name].step for sae in todo}  # of SAEs that have not started yet
        train = plan.config.train
        self._saes = {sae.name: sae for sae in todo}
        self._at_once = min(train.at_once, room_for(train), plan.trainers(todo))
        self._streams = streams_at_once(entries(train, todo), self._at_once, train.group)
        self._schedule = Schedule(entries(train, todo), self._at_once, self._streams, train.retries, train.group)
        self._stopping = EarlyStopping(plan, state, todo)
        self._leaving: dict[str, str] = {}  # by SAE that was asked to stop early: the reason
        self._running: dict[Any, Group] = {}  # by Ray's reference of the call
        self._warned: set[str] = set()  # sentences that were shown
        self._next_watch = 0.0

    def run(self, look: Callable[[Collection[str]], None] = lambda training: None) -> dict[str, SaeOutcome]:
        """Train all SAEs and return the outcome of each.

        ``look`` is called with the names of the SAEs in training: every now and then, and before a cohort starts.
        """
        saes, steps = self._saes.values(), self._plan.config.train.steps
        streams = len({sae.hooks for sae in saes})
        title = f"training {len(saes)} SAEs in {self._at_once} trainers, {steps:,} steps each, from {streams} shared streams"
        with (
            ActorGroup("activation_server", [], self._targets) as servers,
            ActorGroup("trainer", [self._new_trainer() for _ in range(self._at_once)], self._targets) as trainers,
            self._reporter.phase(title, {sae.name: sae.config.steps for sae in saes}),
        ):
            self._servers = NodeServers(self._plan.config, self._streams, servers)
            self._pool = Pool(trainers, self._new_trainer)
            while not self._schedule.done:
                for cohort in self._schedule.start(self._pool.free):
                    look(self._schedule.training)
                    self._start(cohort)
                trainers.pending = list(self._running)
                self._wait()
                self._watch()
                self._stop_early()
                self._heed_requests()
                self._desk.saes({name: self._progress_of(name) for name in self._saes})
                for state, count in self._schedule.counts().items():
                    metrics.SWEEP_SAES.labels(state).set(count)
                look(self._schedule.training)
        self._desk.saes({name: self._progress_of(name) for name in self._saes})
        return self._schedule.outcomes

    def _new_trainer(self) -> Any:
        plan, train = self._plan, self._plan.config.train
        return TrainerActor.options(**needs(train)).remote(plan.config.bucket, max(1, int(train.cpus)), train.gpus > 0)

    # Starting a cohort

    def _start(self, cohort: list[list[str]]) -> None:
        """Start groups of one stream; the groups of a node share the node's server.

        The server hears of all cursors before any trainer connects, so that its window opens at the earliest.
        """
        stream, groups = self._plan.stream(self._saes[cohort[0][0]].hooks), self._with_slots(cohort)
        nodes = dict.fromkeys(group.leader.node for group in groups)
        self._servers.start(nodes)
        for node in nodes:
            of_node = [group for group in groups if group.leader.node == node]
            cursors = {group.consumer: self._cursor(group) for group in of_node}
            try:
                server = self._servers.expect(node, stream, cursors, self._plan.config.train.steps)
            except ScopemillError as error:
                for group in of_node:
                    for slot in group.slots:
                        self._pool.give_back(slot)
                    self._settle(group, dict.fromkeys(group.names, error))
                continue
            for group in of_node:
                self._call(group, server)

    def _with_slots(self, cohort: list[list[str]]) -> list[Group]:
        """Take slots for each group; wide SAEs choose first, to find all their slots on one node."""
        ranks = {names[0]: self._plan.config.train.parts(self._saes[names[0]].config.width) for names in cohort}
        wide = [Group(names, self._pool.take(ranks[names[0]])) for names in cohort if ranks[names[0]] > 1]
        others = [names for names in cohort if ranks[names[0]] == 1]
        return wide + [Group(names, [slot]) for names, slot in zip(others, self._pool.take(len(others)), strict=True)]

    def _call(self, group: Group, server: Whereabouts) -> None:
        assignments = [assignment_of(self._plan, self._manifest, self._saes[name]) for name in group.names]
        group.start(assignments, server, self._plan.config.server.keys)
        self._running |= dict.fromkeys(group.calls, group)

    def _cursor(self, group: Group) -> int:
        """Return the batch at which a group resumes: the first that one of its SAEs needs."""
        return min(self._cursor_of(name) for name in group.names)

    def _cursor_of(self, name: str) -> int:
        """Return an SAE's cursor: at its first start as the state says, at a retry as the bucket says."""
        first = self._first_cursors.pop(name, None)
        return checkpoint.newest(self._plan.bucket, self._saes[name].layout) if first is None else first

    # Calls that return

    def _wait(self) -> None:
        """Wait until a call returns, or for a moment; handle every call that has returned."""
        calls = [*self._running, *self._pool.starting]
        if not calls:  # no group of a cohort could start
            return
        ray.wait(calls, num_returns=1, timeout=POLL_SECONDS)
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
        self._pool.add_started(ready)
        for ref in ready:
            if ref in self._running:
                self._returned(ref, self._running.pop(ref))

    def _returned(self, ref: Any, group: Group) -> None:
        """Handle the return of a trainer's call: free or replace the slot, and settle the group after its last call."""
        slot = group.calls.pop(ref)
        try:
            group.outcomes |= ray.get(ref) or {}
            self._pool.give_back(slot)
        except RayError as error:
            group.errors.append(as_scopemill_error(error))
            if isinstance(error, RayActorError):
                ray.kill(slot.actor)  # Ray may have restarted the process, which must take no calls while it is replaced
                self._pool.replace(slot)
                self._end_other_ranks(group)
            else:
                self._pool.give_back(slot)
        if group.calls:
            return
        outcomes = group.final_outcomes()
        if any(isinstance(outcome, ScopemillError) for outcome in outcomes.values()):  # a trainer that perhaps never connected
            self._servers.expect_no_more(group.leader.node, self._plan.stream(self._saes[group.consumer].hooks), group.consumer)
        self._settle(group, outcomes)

    def _end_other_ranks(self, group: Group) -> None:
        """Give the other ranks of a wide SAE time to end by themselves, then kill the rest: no rank can go on alone."""
        if group.calls:
            _, open_calls = ray.wait(list(group.calls), num_returns=len(group.calls), timeout=CLOSE_SECONDS)
            for call in open_calls:
                ray.kill(group.calls[call].actor)

    def _settle(self, group: Group, outcomes: Mapping[str, Outcome]) -> None:
        """Report the outcome of each SAE to the schedule, once per SAE."""
        for name in outcomes.keys() - group.settled:
            group.settled.add(name)
            if isinstance(outcome := outcomes[name], ScopemillError):
                self._failed(name, outcome)
            else:
                self._ended(name, outcome)

    def _ended(self, name: str, steps: int) -> None:
        self._reporter.update(name, steps)
        self._rows[name] = self._rows.get(name, SaeProgress()).model_copy(update={"step": steps})
        if self._stopping.steps:
            self._stopping.know_history(name)
        if steps < self._saes[name].config.steps:
            if (reason := self._leaving.pop(name, "its trainer was asked to stop")) == ON_REQUEST:
                self._stopping.failed(name)
            self._schedule.stopped(name, reason)
        else:
            self._schedule.finished(name)

    def _failed(self, name: str, error: ScopemillError) -> None:
        if name in self._leaving:
            self._schedule.stopped(name, self._leaving.pop(name))
        elif isinstance(error, ShardLost):
            self._reporter.say(f"{name} is interrupted: {error}")
            self._schedule.interrupted(name, str(error))
        elif self._schedule.failed(name, str(error), is_transient=not isinstance(error, (InputError, Conflict))):
            self._reporter.say(f"{name} failed and will be retried after the others: {error}")
        else:
            self._stopping.failed(name)

    # SAEs in training

    def _watch(self) -> None:
        """Ask the trainers for their progress; the more trainers there are, the more rarely."""
        if time.monotonic() < self._next_watch:
            return
        groups = self._groups
        self._next_watch = time.monotonic() + max(POLL_SECONDS, len(groups) / PROGRESS_CALLS_PER_SECOND)
        answers: list[list[Progress] | None] = ask([group.leader.actor.progress.remote(self._stopping.steps) for group in groups])
        for group, answer in zip(groups, answers, strict=True):
            reports = [progress for progress in answer or () if progress.name in group.names]  # a new call may not have begun yet
            for progress in reports:
                self._note(group, progress)
            outcomes = {progress.name: progress.outcome for progress in reports if progress.outcome is not None}
            if len(outcomes) < len(reports):  # otherwise the group's call returns by now
                self._settle(group, outcomes)

    def _note(self, group: Group, progress: Progress) -> None:
        for warning in progress.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._reporter.say(f"{progress.name}: {warning}")
        if progress.outcome is None and (progress.name in self._leaving or progress.name in group.settled):
            group.leader.actor.leave.remote(progress.name)  # again: a restarted process does not know
        if progress.name not in group.settled:
            row = progress.last
            self._rows[progress.name] = SaeProgress(step=progress.step, row=row_fields(row))
            self._reporter.update(progress.name, progress.step, f"L0 {row.l0:6.1f}  FVU {row.fvu:.3f}" if row else "")
            self._stopping.know(progress.name, progress.at)

    def _stop_early(self) -> None:
        for name, reason in self._stopping.decide().items():
            if name in self._schedule.outcomes:
                continue  # the SAE ended before its rivals reached the rung
            self._stop(name, reason)

    def _stop(self, name: str, reason: str) -> None:
        """Let an SAE wait no longer, or ask its trainer to write a checkpoint and leave it."""
        if self._schedule.withdraw(name, reason):
            if reason == ON_REQUEST:
                self._stopping.failed(name)
            return
        if self._leaving.get(name) == reason:
            return
        self._leaving[name] = reason
        self._reporter.say(f"{name} is stopped: {reason}")
        for group in self._groups:
            if name in group.names:
                group.leader.actor.leave.remote(name)

    # What people ask

    def _heed_requests(self) -> None:
        """Carry out what people ask. An SAE that is asked to stop counts as busy until its trainer has left it."""
        for request in self._desk.requests:
            if request.action in ("stop", "delete"):
                for name in request.saes:
                    if name in self._saes and name not in self._schedule.outcomes:
                        self._stop(name, ON_REQUEST)
        for request in self._desk.carry_out(busy=self._schedule.training):
            for name in request.saes if request.action == "retry" else ():
                if name in self._saes and self._schedule.retry(name):
                    self._reporter.say(f"{name} is trained again on request")
                self._leaving.pop(name, None)

    def _progress_of(self, name: str) -> SaeProgress:
        outcome = self._schedule.state_of(name)
        return self._rows.get(name, SaeProgress()).model_copy(
            update={"state": outcome.state, "tries": outcome.tries, "reason": outcome.reason}
        )

    @property
    def _groups(self) -> list[Group]:
        return list(dict.fromkeys(self._running.values()))
