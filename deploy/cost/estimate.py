"""Estimate what a sweep costs: tokens, operations, bytes, hours and money.

The estimate is arithmetic on sizes alone.
"""

from dataclasses import dataclass, replace

from rich.console import Group
from rich.table import Table

from scopemill.deploy.cost.sizes import ModelSize, sae_weights, shape_of
from scopemill.deploy.plan.cohorts import Entry, cohorts_of, divided
from scopemill.deploy.plan.sweep_plan import PlannedSae, SweepPlan, entries, row_bytes
from scopemill.proto.dataset import STORED_DTYPES
from scopemill.proto.errors import InputError
from scopemill.trainer.config.recipe import SaeConfig

FLOAT32_BYTES = STORED_DTYPES["float32"].itemsize
# Two operations for each weight and row in each product of a step: both products forward, both gradients of the
# weights, and the gradient of the latents, which is the decoder's half. The gradient of the rows is not needed.
STEP_OPERATIONS = 5
# Passes of a step over memory of these sizes: weights are read twice, their gradients written and read, weights read and written,
# and so each of Adam's moments; pre-activations, latents and their gradients are written once and read once or twice.
PASSES_OVER_WEIGHTS, PASSES_OVER_MOMENTS, PASSES_OVER_LATENTS = 6, 2, 8
ROLLING_GROUPS = 2  # of K shards: one is read, one is being written


@dataclass(frozen=True)
class Hardware:
    """Describe one accelerator.

    The peaks are the maker's for dense products; the price is an assumption, so give your own.
    """

    bfloat16_tflops: float
    float32_tflops: float  # without TF32, which changes the numbers
    bandwidth: float  # of its memory, in TB/s
    price: float  # US dollars an hour
    utilisation: float = 0.4  # the share of peak and bandwidth that is reached

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf") or (value == 0 and name != "price") or (value > 1 and name == "utilisation"):
                raise InputError(
                    f"--{name.replace('_', '-')} {value:g} is impossible: give a number above 0 (--price may be 0, --utilisation at most 1)"
                )

    def __str__(self) -> str:
        return (
            f"{self.bfloat16_tflops:g} TFLOP/s in bfloat16 and {self.float32_tflops:g} in float32, {self.bandwidth:g} TB/s, "
            f"{self.utilisation:.0%} of them reached; US$ {self.price:g} an hour"
        )

    def seconds(self, flops: float, dtype: str, memory_bytes: float = 0) -> float:
        """Return the seconds of some products and of the passes over memory that follow them."""
        peak = {"bfloat16": self.bfloat16_tflops, "float32": self.float32_tflops}[dtype]
        return (flops / peak + memory_bytes / self.bandwidth) / (self.utilisation * 1e12)


HARDWARE = {
    "l4": Hardware(121, 30.3, 0.30, 0.8),
    "l40s": Hardware(362, 91.6, 0.864, 1.9),
    "a100": Hardware(312, 19.5, 2.04, 3.0),
    "h100": Hardware(989, 67, 3.35, 4.0),
    "h200": Hardware(989, 67, 4.8, 5.0),
}


def named_hardware(name: str, given: dict[str, float | None]) -> Hardware:
    """Return a known accelerator with some figures replaced.

    Raises InputError for an unknown name or an impossible figure.
    """
    if name not in HARDWARE:
        raise InputError(f"--hardware {name!r} is not known: choose one of {', '.join(HARDWARE)}")
    return replace(HARDWARE[name], **{field: value for field, value in given.items() if value is not None})


@dataclass(frozen=True)
class Stage:
    """Describe one stage of a sweep and what it takes."""

    name: str
    tokens: int  # counted once for each SAE or pass
    flops: float
    kept: float  # bytes that the stage leaves in the bucket
    hours: float  # of one accelerator


@dataclass(frozen=True)
class DataPath:
    """Describe one way to bring activations to the trainers, in bytes."""

    name: str
    on_disk: float  # at any one time
    read: float  # from the bucket, in all
    served: float  # to trainers, in all
    per_second: float  # to the fastest SAE


@dataclass(frozen=True)
class Cost:
    """Hold what a sweep costs, by stage, and the ways of its activations."""

    stages: list[Stage]
    paths: list[DataPath]


def activation_bytes(rows: int, widths: list[int], itemsize: int) -> int:
    """Count the bytes of rows at hooks of these widths.

    The labels that name each row's token are left out.
    """
    return rows * sum(widths) * itemsize


def forward_flops(size: ModelSize, layers: int, context: int, attention: int, head: bool) -> float:
    """Count the operations a token of a forward pass through so many layers.

    ``attention`` is the width of all heads. Attention counts every pair of the context, as masking kernels compute every pair.
    """
    return 2.0 * (layers * (size.layer + 2 * context * attention) + head * size.head)


def step_flops(weights: int, batch: int) -> float:
    """Count the operations of a dense training step."""
    return float(STEP_OPERATIONS * weights * batch)


def step_bytes(weights: int, batch: int, width: int, moments: float = 1) -> float:
    """Count the bytes through the accelerator's memory in a dense step, in float32.

    ``moments``: see `moments_of`.
    """
    over_weights = PASSES_OVER_WEIGHTS + PASSES_OVER_MOMENTS * moments
    return float(FLOAT32_BYTES * (over_weights * weights + PASSES_OVER_LATENTS * batch * width))


def moments_of(config: SaeConfig) -> float:
    """Count the numbers of Adam's state for each weight.

    They are a moment or two, and none for a tied encoder.
    """
    return (2 if config.adam_beta1 else 1) * (0.5 if config.tied_weights else 1)


def cost_of(plan: SweepPlan, size: ModelSize, hardware: Hardware) -> Cost:
    """Estimate what the whole sweep takes on this hardware, from its start."""
    weights = {sae.name: sae_weights(sae.config, shape_of(plan.card, sae.inputs, sae.targets)) for sae in plan.saes}
    stages = [_harvest(plan, size, hardware), _train(plan, weights, hardware), _evaluate(plan, size, weights, hardware)]
    return Cost(stages, _data_paths(plan, weights, hardware))


def _harvest(plan: SweepPlan, size: ModelSize, hardware: Hardware) -> Stage:
    """Estimate the harvest: the text goes through the model once in each pass, up to the pass's last hook."""
    config, rows = plan.config, harvested_rows(plan)
    layers = [max(hook.layer for hook in part.harvest.hooks) + 1 for part in plan.passes]
    flops = sum(rows * forward_flops(size, n, config.harvest.context_length, _attention(plan), head=False) for n in layers)
    hours = hardware.seconds(flops, config.model.dtype) / 3600
    kept = 0 if plan.sheds else stored_bytes(plan, rows, STORED_DTYPES[config.harvest.dtype].itemsize)
    return Stage("harvest", rows * len(layers), flops, kept, hours)


def _train(plan: SweepPlan, weights: dict[str, int], hardware: Hardware) -> Stage:
    tokens, flops, kept, seconds = 0, 0.0, 0.0, 0.0
    for sae in plan.saes:
        steps, batch, entries = sae.config.steps, sae.config.batch_size, weights[sae.name]
        tokens += steps * batch
        flops += steps * step_flops(entries, batch)
        seconds += steps * _step_seconds(sae, entries, hardware)
        # each checkpoint's weights, the newest one's moments, and the finished SAE
        kept += (_checkpoints(sae) + 1 + moments_of(sae.config)) * entries * FLOAT32_BYTES
    return Stage("train", tokens, flops, kept, seconds / 3600)


def _evaluate(plan: SweepPlan, size: ModelSize, weights: dict[str, int], hardware: Hardware) -> Stage:
    """Estimate the evaluation: three forward passes for each hook (clean, zeros, means), two and the SAE itself for each checkpoint.

    With ``harvest.outlier_norm`` all of it is done again on the rows that the filter keeps, which each evaluator finds in a further pass.
    """
    config = plan.config
    filtered = config.harvest.outlier_norm is not None
    text = config.evaluation.sequences * config.harvest.context_length
    every = config.evaluation.checkpoints == "all"
    measured = {sae.name: _checkpoints(sae) if every else 1 for sae in plan.saes}
    times, looks = (2, config.evaluation.actors) if filtered else (1, 0)
    passes = times * (3 * len({sae.targets or sae.inputs for sae in plan.saes}) + 2 * sum(measured.values()))

    def forward(layers: int, head: bool) -> float:
        return text * forward_flops(size, layers, config.harvest.context_length, _attention(plan), head)

    last = max(hook.layer for hook in plan.hooks) + 1
    model = passes * forward(plan.card.layers, head=True) + looks * forward(last, head=False)
    own = times * sum(2.0 * weights[name] * text * n for name, n in measured.items())
    hours = (hardware.seconds(model, config.model.dtype) + hardware.seconds(own, "float32")) / 3600
    return Stage("evaluate", (passes + looks) * text, model + own, 0.0, hours)


def _data_paths(plan: SweepPlan, weights: dict[str, int], hardware: Hardware) -> list[DataPath]:
    harvest, rows = plan.config.harvest, harvested_rows(plan)
    rolling = min(rows, ROLLING_GROUPS * plan.config.server.shards_side_by_side * harvest.rows_per_shard)
    itemsize = STORED_DTYPES[harvest.dtype].itemsize

    def path(name: str, rows_on_disk: int, itemsize: int, shared: bool) -> DataPath:
        taken = {sae.name: activation_bytes(sae.config.steps * sae.config.batch_size, row_widths(plan, sae), itemsize) for sae in plan.saes}
        counted = (readers(plan), receivers(plan)) if shared else (plan.saes, plan.saes)
        read, served = (sum(taken[sae.name] for sae in saes) for saes in counted)
        parts = {sae.name: plan.config.train.parts(sae.config.width) for sae in plan.saes}
        steps = {s.name: s.config.steps * _step_seconds(s, weights[s.name], hardware) / parts[s.name] for s in plan.saes}
        return DataPath(name, stored_bytes(plan, rows_on_disk, itemsize), read, served, max(taken[name] / steps[name] for name in taken))

    return [
        path("float32, each SAE reads for itself", rows, FLOAT32_BYTES, shared=False),
        path(f"{harvest.dtype}, one read for all on a stream", rows, itemsize, shared=True),
        path("the same, rolling: spent shards are deleted", rolling, itemsize, shared=True),
    ]


def readers(plan: SweepPlan) -> list[PlannedSae]:
    """Return one SAE for each read of a stream.

    The SAEs of a cohort share a read.
    """
    saes = {sae.name: sae for sae in plan.saes}
    return [saes[cohort[0].name] for cohort in _cohorts(plan)]


def receivers(plan: SweepPlan) -> list[PlannedSae]:
    """Return one SAE for each copy of a stream that is sent.

    One copy goes to each group, or to the trainers of a wide SAE together.
    """
    saes = {sae.name: sae for sae in plan.saes}
    return [saes[group[0]] for cohort in _cohorts(plan) for group in divided(cohort, plan.config.train.group)]


def _cohorts(plan: SweepPlan) -> list[list[Entry]]:
    train = plan.config.train
    return cohorts_of(entries(train, plan.saes), train.at_once, train.group)


def harvested_rows(plan: SweepPlan) -> int:
    """Count the rows at each hook, in whole shards."""
    harvest = plan.config.harvest
    return harvest.tokens // harvest.rows_per_shard * harvest.rows_per_shard


def stored_bytes(plan: SweepPlan, rows: int, itemsize: int) -> int:
    """Count the stored bytes of so many rows of every pass.

    The largest pass counts if passes are deleted in turn, else the sum of all passes.
    """
    of_passes = [rows * row_bytes(plan.card, part.harvest.hooks, itemsize) for part in plan.passes]
    return max(of_passes) if plan.sheds else sum(of_passes)


def row_widths(plan: SweepPlan, sae: PlannedSae) -> list[int]:
    """Return the widths of the hooks of an SAE's stream."""
    return [plan.card.widths[hook.site] for hook in sae.hooks]


def _attention(plan: SweepPlan) -> int:
    return plan.card.widths.get("attn_z", 0)


def _checkpoints(sae: PlannedSae) -> int:
    return -(-sae.config.steps // sae.config.checkpoint_every)


def _step_seconds(sae: PlannedSae, weights: int, hardware: Hardware) -> float:
    config = sae.config
    flops, memory = step_flops(weights, config.batch_size), step_bytes(weights, config.batch_size, config.width, moments_of(config))
    return hardware.seconds(flops, config.precision, memory)


def cost_tables(cost: Cost, hardware: Hardware) -> Group:
    """Lay a cost out as two tables: stages and data paths."""
    stages = _table("stage", "tokens", "FLOPs", "kept in the bucket", "hours", "US$")
    for stage in cost.stages:
        price = f"{stage.hours * hardware.price:,.2f}"
        stages.add_row(stage.name, f"{stage.tokens:,}", f"{stage.flops:.2e}", size_label(stage.kept), f"{stage.hours:,.2f}", price)
    hours = sum(stage.hours for stage in cost.stages)
    flops, kept = (sum(getattr(stage, field) for stage in cost.stages) for field in ("flops", "kept"))
    stages.add_row("all", "", f"{flops:.2e}", size_label(kept), f"{hours:,.2f}", f"{hours * hardware.price:,.2f}", style="bold")
    paths = _table("activations", "on disk at once", "read from the bucket", "served to trainers", "for one SAE")
    for path in cost.paths:
        totals = (size_label(n) for n in (path.on_disk, path.read, path.served))
        paths.add_row(path.name, *totals, f"{size_label(path.per_second)}/s")
    return Group(stages, "", paths)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table


def size_label(n: float) -> str:
    """Write a number of bytes for people, such as 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if n < 1024:
            return f"{n:,.1f} {unit}"
        n /= 1024
    return f"{n:,.1f} PiB"
