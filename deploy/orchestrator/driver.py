"""Take a plan through its phases on Ray.

Each phase is idempotent: committed work is not done again. A phase takes the sweep's state as it begins and returns the state as
it ends, so a command reads the bucket once for each change.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from scopemill.deploy.cluster.ray_cluster import check_place, needs, room_for
from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.orchestrator.actor_group import ActorGroup, ask, get
from scopemill.deploy.orchestrator.desk import Desk
from scopemill.deploy.orchestrator.evidence import EvidenceWork, evidence_to_make, make_evidence
from scopemill.deploy.orchestrator.failures import failed_checkpoints, not_evaluated, summary
from scopemill.deploy.orchestrator.finetuning import finetune_sweep
from scopemill.deploy.orchestrator.rolling import RollingHarvest, announce, check_all_fit
from scopemill.deploy.orchestrator.schedule import SaeOutcome
from scopemill.deploy.orchestrator.training import Training
from scopemill.deploy.plan.checks import check_window
from scopemill.deploy.plan.state import PassState, SweepState
from scopemill.deploy.plan.sweep_plan import Pass, SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.fidelity.actor import EvaluatorActor
from scopemill.evaluator.fidelity.jobs import Job
from scopemill.harvester.actor import HarvesterActor
from scopemill.harvester.task import IN_FLIGHT
from scopemill.harvester.text.packed_text import what_was_read
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import InputError, PartlyFailed, ScopemillError
from scopemill.proto.shards import remove_shard

REPAIRS = 3  # rounds of training for one pass: a disk that loses shards again and again ends the sweep


class SweepDriver:
    """Call ``harvest``, ``train``, ``finetune`` and ``evaluate`` in this order, inside a `cluster` and inside ``targets``.

    Every method reads the bucket unless it is given the state.
    """

    def __init__(self, plan: SweepPlan, reporter: Reporter, desk: Desk | None = None):
        self.plan, self._reporter = plan, reporter
        self.desk = desk or Desk(plan.bucket, plan.record)
        file = Path(plan.config.file_sd) if plan.config.file_sd else None
        self.targets = Targets(file, plan.config.name, plan.config.metrics_port)

    def has_work(self, phases: Iterable[str], state: SweepState | None = None) -> bool:
        """Return True if any phase finds work that is not committed.

        Only then is a cluster needed.
        """
        others = [phase for phase in phases if phase != "evidence"]
        work = self.plan.work(state)
        return bool(work.left(others)) or ("evidence" in phases and bool(self._evidence_left(work.state)))

    def is_asked_again(self, phases: Collection[str]) -> bool:
        """Carry out the last requests; return True if they made work for these phases."""
        self.desk.look()
        asked = {request.action for request in self.desk.requests}
        self.desk.retries = "now" if "train" in phases else "left"
        self.desk.carry_out()
        return not asked.isdisjoint(("retry", "evaluate") if "train" in phases else ("evaluate",)) and self.has_work(phases)

    def check_nodes(self, phases: Collection[str], state: SweepState | None = None) -> None:
        """Raise InputError if the cluster lacks a node that these phases' remaining work needs."""
        config, now = self.plan.config, state or self.plan.read_state()
        trains = "train" in phases and self.has_work(["train"], now)
        if ("harvest" in phases and self.has_work(["harvest"], now)) or (trains and config.harvest.rolling):
            check_place("harvest", config.harvest)
        if trains:
            check_place("train", config.train)
        if "finetune" in phases and config.train.finetune and (trains or self.has_work(["finetune"], now)):
            check_place("train.finetune.kl", config.train.finetune.kl)
        if "evaluate" in phases and (trains or self.has_work(["evaluate"], now)):
            check_place("evaluation", config.evaluation)
        if "evidence" in phases and config.evidence and (trains or self.has_work(["evidence"], now)):
            check_place("evidence", config.evidence)

    def check_room(self, phases: Collection[str], state: SweepState | None = None) -> None:
        """Raise InputError if a wide SAE or the server's window does not fit the cluster.

        A wide SAE needs room for all of its trainers at once. The window is shared by the streams of the trainers that there is room for.
        """
        if "train" not in phases:
            return
        train, now = self.plan.config.train, state or self.plan.read_state()
        check_window(self.plan, now, room_for(train))
        left = set(now.unfinished)
        width = max((sae.config.width for sae in self.plan.saes if sae.name in left), default=1)
        if (parts := train.parts(width)) > 1 and parts > (room := room_for(train)):
            raise InputError(
                f"train.latents_per_trainer: an SAE of {width} latents is divided over {parts} trainers, and the cluster has room for "
                f"{room}, of {train.cpus:g} CPUs and {train.gpus:g} GPUs each: raise it, or make the cluster larger"
            )

    def harvest(self, state: SweepState | None = None) -> SweepState:
        """Pack, calibrate, and make every shard that is not committed.

        In rolling mode training makes the shards. Where the disk has room for one pass, only the first pass with SAEs to train is
        harvested; ``train`` harvests the others.
        """
        now = state or self.plan.read_state()
        todo = self.plan.work(now).to_harvest()
        for number in todo:
            self._harvest(self.plan.passes[number], now.passes[number])
        return now if all(now.passes[number].harvested for number in todo) else self.plan.read_state()

    def train(self, state: SweepState | None = None) -> SweepState:
        """Train every SAE that is not finished, pass by pass.

        As many SAEs train at once as there is room for. Raises PartlyFailed, after all others are trained, if some failed; where the disk
        has room for one pass, no pass follows one with a failed SAE, which keeps its shards.
        """
        failures: list[str] = []
        now = state or self.plan.read_state()
        self.check_room(["train"], now)
        if not now.unfinished:
            self._reporter.say(f"training: none of the {len(self.plan.saes)} SAEs is left to train")
        for number in self.plan.work(now).in_turn():
            part = self.plan.passes[number]
            if names := now.passes[number].unfinished:
                if len(self.plan.passes) > 1:
                    self._reporter.say(f"{part.harvest.dataset}: {len(part.harvest.hooks)} hooks, {len(names)} SAEs to train")
                if not now.passes[number].harvested:
                    self._harvest(part, now.passes[number])
                    now = self.plan.read_state()
                try:
                    self._train(part, now.passes[number])
                except PartlyFailed as error:
                    failures.append(str(error))
                now = self.plan.read_state()
            if failures and self.plan.sheds:
                break
            if self.plan.sheds and self._shed(part, now.passes[number]):
                now = self.plan.read_state()
        if failures:
            raise PartlyFailed("\n".join(failures))
        return now

    def _harvest(self, part: Pass, state: PassState) -> None:
        bucket, config = part.bucket, part.config.harvest
        if not config.rolling:
            bucket.remove(part.harvest.layout.rolling)  # a rolling dataset becomes one that is kept
        if state.harvested:
            how = "made while SAEs are trained" if config.rolling else "committed"
            self._reporter.say(f"harvest: all {state.harvested_manifest().shards} shards are {how}")
            return
        wanted = config.tokens // config.rows_per_shard
        options = HarvesterActor.options(**needs(config))
        actors: list[Any] = [options.remote(part.harvest) for _ in range(min(config.actors, room_for(config), wanted))]
        with ActorGroup("harvester", actors, self.targets) as group:
            self._reporter.say("preparing: packing the corpus, measuring the scale of each hook")
            manifest: DatasetManifest = get(actors[0].prepare.remote())
            if read := what_was_read(bucket, part.harvest.text_layout):
                self._reporter.say(f"corpus: {read}")
            for note in get(actors[0].notes.remote()):
                self._reporter.say(f"warning: {note}")
            if manifest.shards < wanted:
                self._reporter.say(f"the corpus fills only {manifest.shards} of the {wanted} shards asked for")
            if config.rolling:
                announce(bucket, manifest.dataset, 0)
            else:
                self._make_shards(group, manifest, [n for n in range(manifest.shards) if n not in state.committed])

    def _make_shards(self, group: ActorGroup, manifest: DatasetManifest, todo: list[int]) -> None:
        calls = [actor.harvest.remote for _ in range(IN_FLIGHT) for actor in group.actors]

        def look() -> None:
            self.desk.carry_out()
            self._reporter.update("tokens", sum(rows or 0 for rows in ask([a.rows_done.remote() for a in group.actors])))

        title = f"harvesting {len(manifest.hooks)} hooks: {len(todo)} shards of {manifest.rows_per_shard:,} tokens"
        with self._reporter.phase(title, {"tokens": len(todo) * manifest.rows_per_shard}):
            group.work_off([todo] * len(calls), calls, done=lambda shard: None, look=look)
            look()

    def _train(self, part: Pass, state: PassState) -> None:
        """Train a pass's SAEs. Shards that were lost meanwhile are made again, and the SAEs that need them train on."""
        endings = self._train_once(part, state, state.unfinished)
        for _ in range(REPAIRS):
            if not (interrupted := [name for name, ending in endings.items() if ending.state == "interrupted"]):
                break
            now = self.plan.read_state().passes[self.plan.passes.index(part)]
            self._reporter.say(f"{len(interrupted)} SAEs wait for lost shards, which are made again")
            if not now.harvested:
                self._harvest(part, now)
                now = self.plan.read_state().passes[self.plan.passes.index(part)]
            endings |= self._train_once(part, now, interrupted)
        self._reporter.show(summary(endings))
        if failed := [f"  {name}: {ending.reason}" for name, ending in endings.items() if ending.state in ("failed", "interrupted")]:
            listed = "\n".join(failed)
            raise PartlyFailed(f"{len(failed)} of {len(endings)} SAEs failed; the others are finished:\n{listed}")

    def _train_once(self, part: Pass, state: PassState, names: Collection[str]) -> dict[str, SaeOutcome]:
        manifest, todo = state.harvested_manifest(), part.named(names)
        if not part.config.harvest.rolling:
            return Training(part, state, todo, self.targets, self._reporter, self.desk).run()
        check_all_fit(part, part.trainers(todo))
        with RollingHarvest(part, manifest, self.targets, self._reporter) as harvest:
            return Training(part, state, todo, self.targets, self._reporter, self.desk).run(harvest.look)

    def _shed(self, part: Pass, state: PassState) -> bool:
        """Delete the shards of a pass whose SAEs are finished; True if there were any. The text stays, to make them again."""
        if state.unfinished or not state.has_shards:
            return False
        self._reporter.say(f"deleting the shards of {part.harvest.dataset}: its SAEs are finished")
        for shard in state.committed:
            remove_shard(part.bucket, part.harvest.dataset, shard)
        part.bucket.remove_tree(part.harvest.layout.shards)  # uncommitted ones too
        return True

    def finetune(self, state: SweepState | None = None) -> SweepState:
        """Fine-tune every finished SAE, if the sweep file has a ``finetune`` section."""
        now = state or self.plan.read_state()
        finetune_sweep(self.plan, now, self.targets, self._reporter)
        return now

    def evaluate(self, state: SweepState | None = None) -> SweepState:
        """Measure every checkpoint that is not measured yet; a hook's checkpoints go to one evaluator.

        Gives way to a retry: what is not measured then waits for the next call.
        Raises PartlyFailed, after all others are measured, if some cannot be.
        """
        plan, config, now = self.plan, self.plan.config.evaluation, state or self.plan.read_state()
        jobs = self.plan.work(now).unevaluated()
        if not jobs:
            started = any(sae.checkpoints for sae in now.saes.values())
            self._reporter.say("evaluation: every checkpoint is evaluated" if started else "evaluation: there is no checkpoint yet")
            return now
        total = sum(map(len, jobs))
        harvest = plan.config.harvest
        text = (harvest.context_length, harvest.outlier_norm, harvest.drop_first_positions)
        arguments = (plan.config.bucket, plan.config.dataset, plan.config.model, plan.card, config, *text)
        options = EvaluatorActor.options(**needs(config))
        actors: list[Any] = [options.remote(*arguments) for _ in range(min(config.actors, room_for(config), len(jobs)))]
        queues: list[list[Job]] = [[] for _ in actors]
        for of_hook in sorted(jobs, key=len, reverse=True):
            min(queues, key=len).extend(of_hook)
        done: list[str] = []
        failures: dict[Job, ScopemillError] = {}

        def advance(sae: str) -> None:
            done.append(sae)
            self._reporter.update("checkpoints", len(done), sae)

        def fail(job: Job, error: ScopemillError) -> None:
            failures[job] = error
            advance(job.sae)

        def look() -> None:
            if self.desk.awaits_retry:
                for queue in queues:
                    queue.clear()

        with ActorGroup("evaluator", actors, self.targets) as group:
            with self._reporter.phase(f"evaluating {total} checkpoints", {"checkpoints": total}):
                group.work_off(queues, [actor.evaluate.remote for actor in actors], advance, look, fail)
        if failures:
            self._reporter.show(failed_checkpoints(failures))
            raise not_evaluated(failures, total)
        return self.plan.read_state()

    def evidence(self, state: SweepState | None = None) -> SweepState:
        """Make the evidence of every finished SAE, if the sweep file says so."""
        plan, now = self.plan, state or self.plan.read_state()
        if plan.config.evidence:
            left = self._evidence_left(now)
            make_evidence(left, plan.config.model, plan.card, plan.config.evidence, self.targets, self._reporter)
            if not left:
                self._reporter.say("evidence: every finished SAE has its evidence")
        return now

    def _evidence_left(self, state: SweepState) -> list[EvidenceWork]:
        config = self.plan.config
        return evidence_to_make(self.plan.bucket, self.plan.record, state, config.evidence, config.model.dtype)
