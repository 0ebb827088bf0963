"""Describe a sweep in a few lines.

These are the first half of ``scopemill plan``, and the head of the report.
"""

from collections import Counter

from scopemill.deploy.cost.estimate import activation_bytes, harvested_rows, readers, receivers, row_widths, size_label, stored_bytes
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.sweep_plan import Pass, PlannedSae, SweepPlan
from scopemill.proto.dataset import STORED_DTYPES


def facts(plan: SweepPlan, state: SweepState) -> dict[str, str]:
    """Describe a sweep and how much of it is done, as named sentences."""
    harvest, train = plan.config.harvest, plan.config.train
    rows, shards = harvested_rows(plan), harvest.tokens // harvest.rows_per_shard
    itemsize = STORED_DTYPES[harvest.dtype].itemsize
    steps, streams = train.steps, Counter(sae.hooks for sae in plan.saes)
    on_each = "-".join(str(n) for n in sorted({min(streams.values()), max(streams.values())}))
    left = len(state.unfinished)
    done = sum(len(part.committed) for part in state.passes)

    def taken(saes: list[PlannedSae]) -> str:
        return size_label(sum(activation_bytes(steps * train.batch_size, row_widths(plan, sae), itemsize) for sae in saes))

    passes = [_pass(number, part, plan.sheds) for number, part in enumerate(plan.passes, 1)] if len(plan.passes) > 1 else []
    return {
        "model": f"{plan.card.name}, {plan.card.layers} layers",
        **({"corpus": plan.corpus} if plan.corpus else {}),
        "hooks": f"{len(plan.hooks)}: {', '.join(h.name for h in plan.hooks)}",
        **({"passes": "\n".join(passes)} if passes else {}),
        "harvest": f"{rows:,} tokens in {shards} shards of {harvest.rows_per_shard:,} rows; {done} are committed",
        "on disk": f"{size_label(stored_bytes(plan, rows, itemsize))} of activations ({stored_bytes(plan, 1, itemsize):,} bytes a token)",
        "train": f"{len(plan.saes)} SAEs ({on_each} on each stream), {left} of them still to do",
        **({"starts from": "\n".join(f"{place}: {what}" for place, what in plan.starts.items())} if plan.starts else {}),
        "each SAE": f"{steps:,} steps of {train.batch_size:,} rows, {steps * train.batch_size / rows:.2f} epochs",
        "data path": f"{taken(readers(plan))} read from the bucket, {taken(receivers(plan))} served to trainers",
        "evaluation": f"{plan.config.evaluation.sequences:,} sequences of {harvest.context_length} tokens for each checkpoint"
        + (", and again on the rows that harvest.outlier_norm keeps" if harvest.outlier_norm else ""),
    }


def _pass(number: int, part: Pass, sheds: bool) -> str:
    last = max(hook.layer for hook in part.harvest.hooks)
    then = ", then its shards are deleted" if sheds else ""
    return f"{number}: {len(part.harvest.hooks)} hooks up to layer {last}, {len(part.saes)} SAEs{then}"
