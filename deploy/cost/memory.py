"""Estimate the peak memory of each kind of process, from sizes alone.

Libraries themselves take some 0.5 GiB more in each process. Where a process has a GPU, model, SAE and latents lie in the GPU's memory.
"""

from dataclasses import dataclass

from rich.table import Table

from scopemill.deploy.cost.estimate import FLOAT32_BYTES, moments_of, row_widths, size_label
from scopemill.deploy.cost.sizes import ModelSize, sae_weights, shape_of
from scopemill.deploy.plan.sweep_plan import SweepPlan, row_bytes
from scopemill.evaluator.fidelity.measure import LATENT_BYTES, rows_at_once
from scopemill.harvester.task import IN_FLIGHT
from scopemill.proto.dataset import STORED_DTYPES

ROW_COPIES = 3  # of a forward pass's rows: in float32, reconstructed, and as captured or spliced
LOSS_BYTES = 8  # for each logit, beside the logit itself: in float32, and its softmax
TRAINED_COPIES = 2  # of the weights: themselves and their gradients; the optimizer's moments come on top
STEP_BYTES = 12  # for each row and latent of a batch
BATCHES_AHEAD = 16  # that a trainer may have asked for


@dataclass(frozen=True)
class Peak:
    """Describe the most memory that a process takes, and what most of it is."""

    process: str
    parts: dict[str, float]  # bytes by what they are for

    @property
    def bytes(self) -> float:
        """Return the sum of the parts."""
        return sum(self.parts.values())


def peaks(plan: SweepPlan, size: ModelSize) -> list[Peak]:
    """Return the largest peak of a harvester, a server, a trainer and an evaluator."""
    return [_harvester(plan, size), _server(plan), _trainer(plan), _evaluator(plan, size)]


def _harvester(plan: SweepPlan, size: ModelSize) -> Peak:
    harvest = plan.config.harvest
    itemsize = STORED_DTYPES[harvest.dtype].itemsize
    row = max(row_bytes(plan.card, part.harvest.hooks, itemsize) for part in plan.passes)
    forward = harvest.sequences_per_forward * harvest.context_length * 4 * max(plan.card.widths.values()) * _model_itemsize(plan)
    return Peak("harvester", {"model": _model(plan, size), "shards": IN_FLIGHT * harvest.rows_per_shard * row, "forward pass": forward})


def _server(plan: SweepPlan) -> Peak:
    return Peak("server", {"window": plan.config.server.window_mib * 2.0**20})


def _trainer(plan: SweepPlan) -> Peak:
    train, itemsize = plan.config.train, STORED_DTYPES[plan.config.harvest.dtype].itemsize
    found = []
    for sae in plan.saes:
        parts, shared = train.parts(sae.config.width), train.group if train.parts(sae.config.width) == 1 else 1
        weights = sae_weights(sae.config, shape_of(plan.card, sae.inputs, sae.targets)) * FLOAT32_BYTES
        found.append(
            Peak(
                "trainer",
                {
                    "SAEs": shared * (TRAINED_COPIES + moments_of(sae.config)) * weights / parts,
                    "step": STEP_BYTES * sae.config.batch_size * sae.config.width / parts,
                    "batches": (BATCHES_AHEAD * itemsize + FLOAT32_BYTES) * sae.config.batch_size * sum(row_widths(plan, sae)),
                },
            )
        )
    return max(found, key=lambda peak: peak.bytes)


def _evaluator(plan: SweepPlan, size: ModelSize) -> Peak:
    rows = plan.config.evaluation.sequences_per_forward * plan.config.harvest.context_length
    found = []
    for sae in plan.saes:
        weights = sae_weights(sae.config, shape_of(plan.card, sae.inputs, sae.targets)) * FLOAT32_BYTES
        parts = {
            "model": _model(plan, size),
            "logits": rows * size.vocabulary * (_model_itemsize(plan) + LOSS_BYTES),
            "SAE": 2.0 * weights,  # as it was trained and as it is finished
            "latents": LATENT_BYTES * float(min(rows, rows_at_once(sae.config.width))) * sae.config.width,
            "rows": float(ROW_COPIES * FLOAT32_BYTES * rows * sum(row_widths(plan, sae))),
        }
        found.append(Peak("evaluator", parts))
    return max(found, key=lambda peak: peak.bytes)


def _model(plan: SweepPlan, size: ModelSize) -> float:
    return float(size.all * _model_itemsize(plan))


def _model_itemsize(plan: SweepPlan) -> int:
    return STORED_DTYPES[plan.config.model.dtype].itemsize


def memory_table(found: list[Peak]) -> Table:
    """Lay peaks out as a table, a row for each process."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("memory of a", "at most", "of which"):
        table.add_column(column, justify="right" if column == "at most" else "left")
    for peak in found:
        table.add_row(peak.process, size_label(peak.bytes), ", ".join(f"{name} {size_label(n)}" for name, n in peak.parts.items()))
    return table
