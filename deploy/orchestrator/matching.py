"""Match the latents of a sweep's SAEs, or of any SAEs on a text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from scopemill.deploy.orchestrator.evidence import located, text_rows
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.evidence.jobs import RowsFrom, packed_rows, shard_rows
from scopemill.evaluator.evidence.rows import ModelSource, ShardSource, Source
from scopemill.evaluator.matching.compare import Comparison, Firings, check_same_model, compare, member_of
from scopemill.evaluator.matching.firings import chosen_shards
from scopemill.evaluator.matching.members import Member, every_pair, related_pairs
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.errors import InputError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import read_finished


@dataclass(frozen=True)
class Matching:
    """Hold what matching takes: SAEs, and the rows that each group reads."""

    members: tuple[Member, ...]
    reads: tuple[tuple[RowsFrom, tuple[str, ...]], ...]  # rows, and the folders of the SAEs that fire on them
    wanted: int  # rows to sample, about
    model: ModelConfig | None = None
    card: ModelCard | None = None
    each_with_each: bool = True


def of_folders(folders: Sequence[str], model: str | None, text: dict[str, Any] | None, context_length: int, rows: int) -> Matching:
    """Prepare to match SAEs each with each; without a text by decoder rows alone.

    Raises InputError for fewer than two SAEs, SAEs of different models, or a text without a model.
    """
    finished = [(folder, read_finished(folder)) for folder in dict.fromkeys(map(located, folders))]
    if len(finished) < 2:
        raise InputError("scopemill match takes a sweep file, or the folders of at least two SAEs")
    check_same_model(finished)
    members = tuple(member_of(folder, one) for folder, one in finished)
    if text is None or not rows:
        return Matching(members, (), 0)
    if model is None:
        raise InputError("--corpus needs --model: the text is run through the live model")
    read, lm, card = text_rows([folder for folder, _ in finished], model, text, context_length, -(-rows // (context_length - 1)))
    return Matching(members, ((read, tuple(folder for folder, _ in finished)),), rows, lm, card)


def of_sweep(plan: SweepPlan, rows: int) -> Matching:
    """Prepare to match the finished SAEs of a sweep that differ in one axis.

    Firing is matched on rows of the shards; where they are gone, on the packed text through the live model. Raises InputError for fewer
    than two finished SAEs.
    """
    state, bucket, record = plan.read_state(), plan.bucket, plan.record
    members, reads = [], []
    for part in record.passes:
        folders = [bucket.place(sae.root) for sae in part.saes if state.saes[sae.name].finished]
        members += [member_of(folder, read_finished(folder)) for folder in folders]
        if folders and rows:
            found = shard_rows(bucket, part.dataset, record.text) or packed_rows(bucket, part.dataset, record.text, plan.config.model.dtype)
            reads.append((found, tuple(folders)))
    if len(members) < 2:
        raise InputError(f"sweep {record.name!r} has {len(members)} finished SAE, and matching takes two: run scopemill sweep first")
    return Matching(tuple(members), tuple(reads), rows, plan.config.model, plan.card, each_with_each=False)


def run(matching: Matching, reporter: Reporter) -> list[Comparison]:
    """Sample firings, compare the pairs, and write the twins.

    Raises InputError if no two SAEs are worth comparing.
    """
    firings, members = sampled_firings(matching, reporter)
    pairs = list(every_pair(members)) if matching.each_with_each else related_pairs(members)
    if not pairs:
        raise InputError("no two of these SAEs differ in one axis alone: name their folders, and each is matched with each")
    done = 0

    def on_pair() -> None:
        nonlocal done
        done += 1
        reporter.update("pairs", done)

    with reporter.phase(f"matching {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of SAEs", {"pairs": len(pairs)}):
        return compare(members, pairs, firings, _device(), on_pair)


def sampled_firings(matching: Matching, reporter: Reporter) -> tuple[Firings, list[Member]]:
    """Sample the firings of all SAEs, and return both, with L0s."""
    lm: LanguageModel | None = None
    firings, l0s = Firings(), dict[str, float]()
    for rows, folders in matching.reads:
        shards, share = chosen_shards(rows.shards, rows.rows, matching.wanted)
        if rows.kind == "model" and lm is None:
            assert matching.model is not None
            lm = LanguageModel(matching.model)
        source = _source(rows, lm, matching.card)
        with reporter.phase(f"firings of {len(folders)} SAEs on rows of {rows.dataset}", {"SAEs": len(folders)}):
            for folder, l0 in firings.add(source, shards, share, folders, _device()):
                l0s[folder] = l0
                reporter.update("SAEs", len(l0s))
    members = [replace(member, l0=l0s.get(member.folder, member.l0)) for member in matching.members]
    return firings, members


def _source(rows: RowsFrom, lm: LanguageModel | None, card: ModelCard | None) -> Source:
    assert card is not None
    if lm is not None and rows.kind == "model":
        return ModelSource(Bucket(rows.url), rows.text, lm, rows.context_length, card.special)
    return ShardSource(Bucket(rows.url), rows.dataset, rows.text, card.special)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
