"""The driver: takes a plan through its phases on Ray. Each phase does what is not committed yet, so any may be run again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from scopemill.activation_server.actor import ServerActor, Whereabouts
from scopemill.deploy.actors import POLL_SECONDS, ActorGroup, Targets, ask, get, reason
from scopemill.deploy.cluster import room_for
from scopemill.deploy.plan import PlannedSae, SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.actor import EvaluatorActor, Job, committed
from scopemill.harvester.actor import IN_FLIGHT, HarvesterActor
from scopemill.proto import metrics
from scopemill.proto.dataset import DatasetManifest, committed_shards
from scopemill.proto.errors import MissingObject, ScopemillError
from scopemill.trainer import checkpoint
from scopemill.trainer.actor import Assignment, TrainerActor


class SweepDriver:
    """Call ``harvest``, ``train`` and ``evaluate`` in this order, inside a `cluster`."""

    def __init__(self, plan: SweepPlan, reporter: Reporter):
        self.plan, self._reporter = plan, reporter
        default = metrics.TARGETS / f"{plan.config.name}.json"
        self.targets = Targets(Path(plan.config.file_sd) if plan.config.file_sd else default, plan.config.name)
        self.targets.set("driver", [metrics.expose()])

    def has_work(self, phases: Iterable[str]) -> bool:
        """Whether any phase finds something that is not committed: only then is a cluster needed."""
        left = {"harvest": lambda: not self.plan.harvested, "train": self.unfinished, "evaluate": self.unevaluated}
        return any(left[phase]() for phase in phases)

    def harvest(self) -> None:
        """Pack, calibrate, and make every shard that is not committed."""
        plan, config = self.plan, self.plan.config.harvest
        if plan.harvested:
            self._reporter.say(f"harvest: all {plan.manifest.shards} shards are committed")
            return
        wanted = config.tokens // config.rows_per_shard
        options = HarvesterActor.options(num_cpus=config.cpus, num_gpus=config.gpus)
        actors = [options.remote(plan.harvest) for _ in range(min(config.actors, room_for(config.cpus, config.gpus), wanted))]
        with ActorGroup("harvester", actors, self.targets) as group:
            self._reporter.say("preparing: packing the corpus, fixing the scale of each hook")
            manifest = get(actors[0].prepare.remote())
            if manifest.shards < wanted:
                self._reporter.say(f"the corpus fills {manifest.shards} of the {wanted} shards asked for")
            done = committed_shards(plan.bucket, manifest.dataset)
            todo = [shard for shard in range(manifest.shards) if shard not in done]
            calls = [actor.harvest.remote for _ in range(IN_FLIGHT) for actor in actors]

            def look() -> None:
                self._reporter.update("tokens", sum(rows or 0 for rows in ask([a.rows_done.remote() for a in actors])))

            title = f"harvesting {len(plan.hooks)} hooks: {len(todo)} shards of {manifest.rows_per_shard:,} tokens"
            with self._reporter.phase(title, {"tokens": len(todo) * manifest.rows_per_shard}):
                group.work_off([todo] * len(calls), calls, done=lambda shard: None, look=look)
                look()

    def train(self) -> None:
        """Train every SAE that is not finished, as many at once as there is room for."""
        plan, train = self.plan, self.plan.config.train
        manifest = plan.manifest
        if manifest is None:
            raise MissingObject(f"dataset {plan.config.dataset!r} is not in {plan.config.bucket}: harvest it first")
        todo = self.unfinished()
        if not todo:
            self._reporter.say(f"training: all {len(plan.saes)} SAEs are finished")
            return
        at_once = min(train.at_once, room_for(train.cpus, train.gpus))
        failed: dict[str, str] = {}
        for start in range(0, len(todo), at_once):
            failed |= self._train_together([self._assignment(sae, manifest) for sae in todo[start : start + at_once]])
        if failed:
            listed = "\n".join(f"  {name}: {why}" for name, why in failed.items())
            raise ScopemillError(f"{len(failed)} of {len(todo)} SAEs failed; the others are finished:\n{listed}")

    def _train_together(self, assignments: list[Assignment]) -> dict[str, str]:
        """Train SAEs concurrently from one server; returns why each that failed did."""
        plan, train = self.plan, self.plan.config.train
        streams = len({a.stream for a in assignments})
        server = ServerActor.remote(plan.config.bucket, plan.config.server, streams)
        options = TrainerActor.options(num_cpus=train.cpus, num_gpus=train.gpus)
        with ActorGroup("activation_server", [server], self.targets):
            # Before any trainer is there, the window is told where each will begin: so none misses the others' reads.
            get([server.expect.remote(a.stream, a.name, self._steps_done(a), a.config.steps) for a in assignments])
            where = Whereabouts(server, get(server.address.remote()))
            actors = [options.remote(plan.config.bucket, a, max(1, int(train.cpus)), train.gpus > 0) for a in assignments]
            with ActorGroup("trainer", actors, self.targets) as group:
                title = f"training {len(actors)} SAEs at once, {assignments[0].config.steps:,} steps each, from {streams} shared streams"
                with self._reporter.phase(title, {a.name: a.config.steps for a in assignments}):
                    runs = {
                        actor.run.remote(where, plan.config.server.keys): (a.name, actor)
                        for a, actor in zip(assignments, actors, strict=True)
                    }
                    return self._watch_training(runs, group)

    def _watch_training(self, runs: dict[Any, tuple[str, Any]], group: ActorGroup) -> dict[str, str]:
        failed: dict[str, str] = {}
        while runs:
            group.open = list(runs)
            finished, _ = ray.wait(group.open, num_returns=len(runs), timeout=POLL_SECONDS)
            for ref in finished:
                name, _ = runs.pop(ref)
                try:
                    self._reporter.update(name, ray.get(ref))
                except RayError as error:
                    failed[name] = reason(error)
            for (name, _), row in zip(runs.values(), ask([actor.progress.remote() for _, actor in runs.values()]), strict=True):
                if row:
                    self._reporter.update(name, int(row["step"]), f"L0 {row['l0']:6.1f}  FVU {row['fvu']:.3f}" if "l0" in row else "")
            metrics.SWEEP_SAES.labels("training").set(len(runs))
            metrics.SWEEP_SAES.labels("failed").set(len(failed))
        return failed

    def evaluate(self) -> None:
        """Measure every checkpoint that is not measured yet; a hook's checkpoints go to one evaluator."""
        plan, config = self.plan, self.plan.config.evaluation
        jobs = self.unevaluated()
        if not jobs:
            begun = any(checkpoint.steps_of(plan.bucket, sae.layout) for sae in plan.saes)
            self._reporter.say("evaluation: every checkpoint is evaluated" if begun else "evaluation: there is no checkpoint yet")
            return
        total = sum(map(len, jobs))
        arguments = (plan.config.bucket, plan.config.dataset, plan.config.model, plan.card, config, plan.config.harvest.context_length)
        options = EvaluatorActor.options(num_cpus=config.cpus, num_gpus=config.gpus)
        actors = [options.remote(*arguments) for _ in range(min(config.actors, room_for(config.cpus, config.gpus), len(jobs)))]
        queues: list[list[Job]] = [[] for _ in actors]
        for of_hook in sorted(jobs, key=len, reverse=True):
            min(queues, key=len).extend(of_hook)
        done: list[str] = []

        def advance(sae: str) -> None:
            done.append(sae)
            self._reporter.update("checkpoints", len(done), sae)

        with ActorGroup("evaluator", actors, self.targets) as group:
            with self._reporter.phase(f"evaluating {total} checkpoints", {"checkpoints": total}):
                group.work_off(queues, [actor.evaluate.remote for actor in actors], advance)

    def unfinished(self) -> list[PlannedSae]:
        return [sae for sae in self.plan.saes if not self.plan.bucket.exists(sae.layout.config)]

    def unevaluated(self) -> list[list[Job]]:
        """The checkpoints that the sweep's evaluation covers and that have none yet, by what they rebuild."""
        plan = self.plan
        by_hook = []
        for outputs in dict.fromkeys(sae.targets or sae.inputs for sae in plan.saes):
            todo = []
            for sae in (s for s in plan.saes if (s.targets or s.inputs) == outputs):
                steps = checkpoint.steps_of(plan.bucket, sae.layout)
                steps = steps[-1:] if plan.config.evaluation.checkpoints == "last" else steps
                todo += [Job(sae.name, sae.layout.root, step) for step in steps]
            by_hook.append([job for job in todo if not committed(plan.bucket, job, plan.evaluation_settings)])
        return [todo for todo in by_hook if todo]

    def _assignment(self, sae: PlannedSae, manifest: DatasetManifest) -> Assignment:
        plan = self.plan
        inputs, targets = (tuple(manifest.hook(hook.name) for hook in hooks) for hooks in (sae.inputs, sae.targets))
        metadata = {"context_size": manifest.context_length, "dataset_path": plan.harvest.identity["corpus.source"]}
        provenance = {
            "sweep": plan.config.name,
            "dataset": plan.config.dataset,
            "identity": plan.harvest.identity,
            "scales": {hook.name: hook.scale for hook in inputs + targets},
            "sae": sae.config.model_dump(mode="json"),
        }
        return Assignment(
            sae.name, sae.layout.root, inputs, targets, plan.stream(sae.hooks), sae.config, plan.card.name, metadata, provenance
        )

    def _steps_done(self, assignment: Assignment) -> int:
        sae = next(s for s in self.plan.saes if s.name == assignment.name)
        return max(checkpoint.steps_of(self.plan.bucket, sae.layout), default=0)
