"""Fine-tune the finished SAEs of a sweep, or any finished SAE, on Ray."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from scopemill.deploy.cluster.ray_cluster import needs, room_for
from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.orchestrator.actor_group import ActorGroup, ask
from scopemill.deploy.plan.finetunings import finetune_jobs, unfinished_jobs
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.fidelity.actor import load_text
from scopemill.evaluator.fidelity.finetuned import Finetuned, FinetuneJob
from scopemill.evaluator.fidelity.finetuner import FinetunerActor
from scopemill.evaluator.fidelity.measure import EvaluationText
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.proto.dataset import read_manifest
from scopemill.trainer.config.finetuning import KlConfig
from scopemill.trainer.finetune.text import DatasetText, Text


def finetune_sweep(plan: SweepPlan, state: SweepState, targets: Targets, reporter: Reporter) -> None:
    """Fine-tune every finished SAE of a sweep that is not fine-tuned yet."""
    if not plan.config.train.finetune:
        return
    kl, harvest = plan.config.train.finetune.kl, plan.config.harvest
    jobs = unfinished_jobs(plan.bucket, finetune_jobs(plan.bucket, plan.record, state))
    if not jobs:
        reporter.say("fine-tuning: every finished SAE is fine-tuned")
        return
    dataset = plan.config.dataset
    text = DatasetText(plan.bucket.url, dataset, read_manifest(plan.bucket, plan.passes[0].harvest.dataset).shards)
    model = plan.passes[0].harvest.model
    held_out = partial(
        load_text, plan.bucket, dataset, model, plan.card, plan.config.evaluation, harvest.context_length, harvest.drop_first_positions
    )
    finetune_all(jobs, model, plan.card, kl, text, held_out, kl.steps(harvest.context_length), targets, reporter)


def finetune_all(
    jobs: Sequence[FinetuneJob],
    model: ModelConfig,
    card: ModelCard,
    config: KlConfig,
    text: Text,
    held_out: Callable[[], EvaluationText],
    steps: int,
    targets: Targets,
    reporter: Reporter,
) -> list[Finetuned]:
    """Fine-tune SAEs on actors, and return the records as the jobs end."""
    by_source: dict[str, list[FinetuneJob]] = {}
    for job in jobs:
        by_source.setdefault(job.source, []).append(job)
    options = FinetunerActor.options(**needs(config))
    number = min(config.actors, room_for(config), len(by_source))
    actors: list[Any] = [options.remote(model, card, config, text, held_out, steps) for _ in range(number)]
    queues: list[list[FinetuneJob]] = [[] for _ in actors]
    for of_source in by_source.values():  # both arms of an SAE go to one actor, which measures the SAE once
        min(queues, key=len).extend(of_source)
    done: list[Finetuned] = []

    def look() -> None:
        reporter.update("steps", sum(steps or 0 for steps in ask([actor.steps_done.remote() for actor in group.actors])))

    with ActorGroup("finetuner", actors, targets) as group:
        with reporter.phase(f"fine-tuning {len(by_source)} SAEs, {len(jobs)} arms of {steps} steps", {"steps": len(jobs) * steps}):
            group.work_off(queues, [actor.finetune.remote for actor in actors], done.append, look)
            look()
    return done
