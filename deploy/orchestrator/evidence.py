"""Make evidence on Ray, from a sweep's shards or the live model."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scopemill.deploy.cluster.ray_cluster import needs, room_for
from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.orchestrator.actor_group import ActorGroup
from scopemill.deploy.plan.record import PlanRecord
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.sweep_file import parse_config, parse_overrides
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.config import EvidenceConfig
from scopemill.evaluator.evidence.actor import EvidenceActor, check_fits
from scopemill.evaluator.evidence.jobs import EvidenceJob, RowsFrom, job_of, packed_rows, shard_rows, tasks, weights_digest
from scopemill.evaluator.evidence.rows import PASSAGES, pack_text
from scopemill.harvester.config import CorpusConfig, ModelConfig, named_model
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.describe import describe
from scopemill.proto.dataset import Dtype
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import read_finished

EvidenceWork = tuple[RowsFrom, list[EvidenceJob]]  # SAEs that take their rows from one place


class Making(NamedTuple):
    """Hold all that it takes to make evidence."""

    work: list[EvidenceWork]
    model: ModelConfig
    card: ModelCard
    config: EvidenceConfig


def from_text(
    folders: Sequence[str], model: str, corpus: dict[str, Any], context_length: int, sequences: int, overrides: Sequence[str]
) -> Making:
    """Pack a text for the live model, and return what making evidence takes.

    The packed text is kept below the first folder's evidence, so that a broken run continues.
    """
    config = parse_overrides(EvidenceConfig, [override.removeprefix("evidence.") for override in overrides], "--set")
    rows, lm, card = text_rows(folders, model, corpus, context_length, sequences)
    jobs = [job_of(located(folder), "", rows, config) for folder in folders]
    return Making([(rows, [job for job in jobs if not job.done(read=True)])], lm, card, config)


def text_rows(
    folders: Sequence[str], model: str, corpus: dict[str, Any], context_length: int, sequences: int
) -> tuple[RowsFrom, ModelConfig, ModelCard]:
    """Pack a text below the first folder's evidence, and describe its rows.

    Raises InputError for a folder that holds no SAE, or one of another model.
    """
    lm = named_model(located(model))
    urls, text = [located(folder) for folder in folders], _corpus(corpus)
    for folder in urls:
        weights_digest(Bucket(folder), "")
    card = describe(lm)
    for folder in urls:
        check_fits(folder, read_finished(folder), card)
    identity = {"model": f"{card.name}@{card.fingerprint}", "model.dtype": lm.dtype, "corpus": text.model_dump(),
                "context_length": context_length, "sequences": sequences}  # fmt: skip
    bucket, place = Bucket(urls[0]), f"evidence/text/{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}"
    count = pack_text(bucket, place, lm, card, text, context_length, sequences)
    shards = tuple(range(-(-count // PASSAGES)))
    rows = RowsFrom("model", urls[0], text.source, place, identity, context_length, lm.dtype, shards, count * context_length)
    return rows, lm, card


def _corpus(fields: dict[str, Any]) -> CorpusConfig:
    text = parse_config(CorpusConfig, fields, "--corpus")
    return text if text.format == "hub" else text.model_copy(update={"source": located(text.source)})


def located(place: str) -> str:
    """Return a local place as an absolute path, any other as it is."""
    return str(Path(place).resolve()) if "://" not in place and Path(place).exists() else place


def evidence_to_make(
    bucket: Bucket, record: PlanRecord, state: SweepState, config: EvidenceConfig | None, dtype: Dtype, read: bool = False
) -> list[EvidenceWork]:
    """Return the finished SAEs of each pass that lack evidence.

    With ``read``, every byte of present evidence is checked. Rows come from shards where they are left, else from their packed text
    through the live model, in precision ``dtype``. Without a configuration none is lacking.
    """
    work: list[EvidenceWork] = []
    for part in record.passes if config else ():
        finished = [sae for sae in part.saes if state.saes[sae.name].finished]
        if finished and config:
            rows = shard_rows(bucket, part.dataset, record.text) or packed_rows(bucket, part.dataset, record.text, dtype)
            jobs = [job_of(bucket.url, sae.root, rows, config, sae.inputs) for sae in finished]
            if left := [job for job in jobs if not job.done(read)]:
                work.append((rows, left))
    return work


def make_evidence(
    work: Sequence[EvidenceWork], model: ModelConfig, card: ModelCard, config: EvidenceConfig, targets: Targets, reporter: Reporter
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
