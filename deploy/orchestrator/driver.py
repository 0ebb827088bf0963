"""The driver: takes a plan through its phases on Ray. Each phase does what is not committed yet, so any may be run again."""

from collections.abc import Collection, Iterable
from pathlib import Path

from scopemill.deploy.cluster.ray_cluster import check_place, needs, room_for
from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.orchestrator.actor_group import ActorGroup, ask, get
from scopemill.deploy.orchestrator.rolling import RollingHarvest, announce, check_all_fit, remove_shard
from scopemill.deploy.orchestrator.training import Training, summary
from scopemill.deploy.plan.sweep_plan import Pass, SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.fidelity.actor import EvaluatorActor
from scopemill.evaluator.fidelity.jobs import Job, committed
from scopemill.harvester.actor import HarvesterActor
from scopemill.harvester.task import IN_FLIGHT
from scopemill.proto import metrics
from scopemill.proto.errors import InputError, ScopemillError
from scopemill.trainer.training import checkpoint


class SweepDriver:
    """Call ``harvest``, ``train`` and ``evaluate`` in this order, inside a `cluster` and inside ``targets``."""

    def __init__(self, plan: SweepPlan, reporter: Reporter):
        self.plan, self._reporter = plan, reporter
        default = metrics.TARGETS / f"{plan.config.name}.json"
        file = Path(plan.config.file_sd) if plan.config.file_sd else default
        self.targets = Targets(file, plan.config.name, plan.config.metrics_port)

    def has_work(self, phases: Iterable[str]) -> bool:
        """Whether any phase finds something that is not committed: only then is a cluster needed."""
        left = {
            "harvest": lambda: not all(part.harvested for part in self._to_harvest()),
            "train": lambda: any(part.unfinished for part in self.plan.passes),
            "evaluate": self.unevaluated,
        }
        return any(left[phase]() for phase in phases)

    def check_nodes(self, phases: Collection[str]) -> None:
        """InputError if what is left of these phases needs a node that the cluster does not have."""
        config = self.plan.config
        trains = "train" in phases and self.has_work(["train"])
        if ("harvest" in phases and self.has_work(["harvest"])) or (trains and config.harvest.rolling):
            check_place("harvest", config.harvest)
        if trains:
            check_place("train", config.train)
        if "evaluate" in phases and (trains or self.has_work(["evaluate"])):
            check_place("evaluation", config.evaluation)

    def check_room(self, phases: Iterable[str]) -> None:
        """InputError if a wide SAE is left to train and the cluster cannot run all of its trainers at once."""
        train = self.plan.config.train
        widths = [sae.config.width for part in self.plan.passes for sae in part.unfinished] if "train" in phases else []
        width = max(widths, default=1)
        if (parts := train.parts(width)) > 1 and parts > (room := room_for(train)):
            raise InputError(
                f"train.latents_per_trainer: an SAE of {width} latents is divided over {parts} trainers, and the cluster has room for "
                f"{room}, of {train.cpus:g} CPUs and {train.gpus:g} GPUs each: raise it, or make the cluster larger"
            )

    def harvest(self) -> None:
        """Pack, calibrate, and make every shard that is not committed; in rolling mode they are made when trainers need them.

        Where only one pass has room on the disk, that is the first with SAEs to train; ``train`` goes on with the others.
        """
        for part in self._to_harvest():
            self._harvest(part)

    def train(self) -> None:
        """Train every SAE that is not finished, pass by pass, as many at once as there is room for."""
        self.check_room(["train"])
        if not any(part.unfinished for part in self.plan.passes):
            self._reporter.say(f"training: of {len(self.plan.saes)} SAEs none is left to train")
        for part in self._in_turn():
            if part.unfinished:
                if len(self.plan.passes) > 1:
                    self._reporter.say(f"{part.harvest.dataset}: {len(part.harvest.hooks)} hooks, {len(part.unfinished)} SAEs to train")
                if not part.harvested:
                    self._harvest(part)
                self._train(part)
            if self.plan.sheds:
                self._shed(part)

    def _to_harvest(self) -> list[Pass]:
        if not self.plan.sheds:
            return self.plan.passes
        return [part for part in self._in_turn() if part.unfinished][:1]

    def _in_turn(self) -> list[Pass]:
        """As planned; where the disk has room for one, that whose shards are there already comes first."""
        return sorted(self.plan.passes, key=lambda part: self.plan.sheds and not part.committed)

    def _harvest(self, part: Pass) -> None:
        bucket, config = part.bucket, part.config.harvest
        if not config.rolling:
            bucket.remove(part.harvest.layout.rolling)  # whatever it was so far, from here on it is kept whole
        if part.harvested:
            what = "made while SAEs are trained" if config.rolling else "committed"
            self._reporter.say(f"harvest: all {part.manifest.shards} shards are {what}")
            return
        wanted = config.tokens // config.rows_per_shard
        options = HarvesterActor.options(**needs(config))
        actors = [options.remote(part.harvest) for _ in range(min(config.actors, room_for(config), wanted))]
        with ActorGroup("harvester", actors, self.targets) as group:
            self._reporter.say("preparing: packing the corpus, fixing the scale of each hook")
            manifest = get(actors[0].prepare.remote())
            if manifest.shards < wanted:
                self._reporter.say(f"the corpus fills {manifest.shards} of the {wanted} shards asked for")
            if config.rolling:
                announce(bucket, manifest.dataset, 0)
                return
            done = part.committed
            todo = [shard for shard in range(manifest.shards) if shard not in done]
            calls = [actor.harvest.remote for _ in range(IN_FLIGHT) for actor in actors]

            def look() -> None:
                self._reporter.update("tokens", sum(rows or 0 for rows in ask([a.rows_done.remote() for a in actors])))

            title = f"harvesting {len(manifest.hooks)} hooks: {len(todo)} shards of {manifest.rows_per_shard:,} tokens"
            with self._reporter.phase(title, {"tokens": len(todo) * manifest.rows_per_shard}):
                group.work_off([todo] * len(calls), calls, done=lambda shard: None, look=look)
                look()

    def _train(self, part: Pass) -> None:
        manifest, todo = part.manifest, part.unfinished
        if part.config.harvest.rolling:
            check_all_fit(part, part.trainers(todo))
            with RollingHarvest(part, manifest, self.targets, self._reporter) as harvest:
                endings = Training(part, manifest, todo, self.targets, self._reporter).run(harvest.look)
        else:
            endings = Training(part, manifest, todo, self.targets, self._reporter).run()
        self._reporter.show(summary(endings))
        if failed := [f"  {name}: {ending.reason}" for name, ending in endings.items() if ending.state == "failed"]:
            listed = "\n".join(failed)
            raise ScopemillError(f"{len(failed)} of {len(todo)} SAEs failed; the others are finished:\n{listed}")

    def _shed(self, part: Pass) -> None:
        """Delete the shards that nobody needs any more. The text stays, that of the evaluation too, so they can be made again."""
        bucket, layout = part.bucket, part.harvest.layout
        if part.unfinished or not bucket.names(layout.shards):
            return
        self._reporter.say(f"deleting the shards of {part.harvest.dataset}: its SAEs are finished")
        for shard in part.committed:
            remove_shard(bucket, part.harvest.dataset, shard)
        bucket.remove_tree(layout.shards)  # and what was begun of others

    def evaluate(self) -> None:
        """Measure every checkpoint that is not measured yet; a hook's checkpoints go to one evaluator."""
        plan, config = self.plan, self.plan.config.evaluation
        jobs = self.unevaluated()
        if not jobs:
            begun = any(checkpoint.newest(plan.bucket, sae.layout) for sae in plan.saes)
            self._reporter.say("evaluation: every checkpoint is evaluated" if begun else "evaluation: there is no checkpoint yet")
            return
        total = sum(map(len, jobs))
        arguments = (plan.config.bucket, plan.config.dataset, plan.config.model, plan.card, config, plan.config.harvest.context_length)
        options = EvaluatorActor.options(**needs(config))
        actors = [options.remote(*arguments) for _ in range(min(config.actors, room_for(config), len(jobs)))]
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
