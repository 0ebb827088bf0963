"""Make evidence on Ray: of a sweep's finished SAEs, or of any finished SAEs through the live model."""

from collections.abc import Sequence
from typing import Any

from scopemill.deploy.cluster.ray_cluster import needs, room_for
from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.orchestrator.actor_group import ActorGroup
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.sweep_plan import Pass, SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.config import EvidenceConfig
from scopemill.evaluator.evidence.actor import EvidenceActor
from scopemill.evaluator.evidence.jobs import EvidenceJob, RowsFrom, job_of, packed_rows, shard_rows, tasks
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.card import ModelCard

Work = tuple[RowsFrom, list[EvidenceJob]]  # SAEs that take their rows from one place


def evidence_to_make(plan: SweepPlan, state: SweepState, config: EvidenceConfig, read: bool = False) -> list[Work]:
    """Return the finished SAEs of each pass that lack evidence; with ``read``, damaged evidence counts as absent.

    Rows come from shards where they are left, else from their packed text through the live model.
    """
    work = []
    for part in plan.passes:
        finished = [sae for sae in part.saes if state.saes[sae.name].finished]
        if finished:
            rows = _rows(plan, part)
            hooks = {sae.layout.root: tuple(hook.name for hook in sae.inputs) for sae in finished}
            jobs = [job_of(plan.bucket.url, root, rows, config, of_sae) for root, of_sae in hooks.items()]
            if left := [job for job in jobs if not job.made(read)]:
                work.append((rows, left))
    return work


def _rows(plan: SweepPlan, part: Pass) -> RowsFrom:
    dataset, text = part.harvest.dataset, part.harvest.text
    return shard_rows(plan.bucket, dataset, text) or packed_rows(plan.bucket, dataset, text, plan.config.model.dtype)


def make_evidence(
    work: Sequence[Work], model: ModelConfig, card: ModelCard, config: EvidenceConfig, targets: Targets, reporter: Reporter
) -> list[str]:
    """Make the evidence of all jobs, and return the folders of their SAEs."""
    made: list[str] = []
    for rows, jobs in work:
        wanted = min(config.actors, room_for(config), max(len(rows.shards), len(jobs)))
        actors: list[Any] = [EvidenceActor.options(**needs(config)).remote(rows, model, card, config) for _ in range(wanted)]
        counting = tasks(jobs, rows, len(actors))
        with ActorGroup("evidence", actors, targets) as group:
            where = f"shards of {rows.dataset}" if rows.kind == "shards" else f"text of {rows.dataset} through the live model"
            title = f"evidence of {len(jobs)} SAEs: {rows.rows:,} rows from {where}"
            done = 0

            def counted(shards: int) -> None:
                nonlocal done
                done += shards
                reporter.update("shards", done)

            with reporter.phase(title, {"shards": sum(len(shards) for _, shards in counting)}):
                group.work_off([counting] * len(actors), [actor.count.remote for actor in actors], counted)
            finishing = list(jobs)
            before = len(made)

            def finished(folder: str, before: int = before) -> None:
                made.append(folder)
                reporter.update("SAEs", len(made) - before)

            with reporter.phase("writing evidence", {"SAEs": len(jobs)}):
                group.work_off([finishing] * len(actors), [actor.finish.remote for actor in actors], finished)
    return made
