"""The sweep's table: one row per evaluated checkpoint, as Parquet and CSV, and what was measured beside it."""

import io
import math
from dataclasses import asdict, dataclass, fields

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as parquet

from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record


@dataclass(frozen=True)
class Result:
    """One checkpoint's quality. Losses are cross-entropies in nats per token; delta = spliced - clean."""

    hook: str  # of a transcoder or crosscoder: what it reads and rebuilds
    layer: int  # the first that it reads
    site: str
    architecture: str
    width: int
    sparsity: float  # as in the sweep file: a coefficient, or k
    step: int
    tokens: int
    l0: float
    fvu: float
    dead_fraction: float
    loss_clean: float
    loss_spliced: float
    loss_zero_ablated: float
    loss_mean_ablated: float
    delta_loss: float
    recovered_zero: float  # (zero-ablated - spliced) / (zero-ablated - clean)
    recovered_mean: float
    path: str  # of the checkpoint in the bucket

    @property
    def place(self) -> str:
        """For people: the layer and site of an SAE of one hook, all of what another one reads and rebuilds."""
        single = self.hook.startswith("blocks.") and "--" not in self.hook
        return f"layer {self.layer} \u00b7 {self.site}" if single else self.hook


@dataclass(frozen=True)
class Histogram:
    """How often latents fire: counts of latents by log10 of the share of tokens on which they did."""

    edges: list[float]  # len(counts) + 1, log10
    counts: list[int]
    never: int  # latents that did not fire on any evaluated token


@dataclass(frozen=True)
class Evaluation:
    """``metrics.json`` of a checkpoint."""

    result: Result
    histogram: Histogram
    evaluated_tokens: int
    settings: dict  # of the evaluation: another setting is another evaluation

    def sealed(self) -> bytes:
        return checksummed_record(asdict(self))

    @staticmethod
    def read(bucket: Bucket, path: str) -> "Evaluation":
        """CorruptObject if it is damaged."""
        data = read_record(bucket, path)
        return Evaluation(Result(**data["result"]), Histogram(**data["histogram"]), data["evaluated_tokens"], data["settings"])


_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
SCHEMA = pa.schema([(f.name, _TYPES[f.type]) for f in fields(Result)])


def write_table(bucket: Bucket, layout: SweepLayout, results: list[Result]) -> None:
    table = pa.Table.from_pylist([asdict(r) for r in results], schema=SCHEMA)
    as_parquet, as_csv = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, as_parquet)
    pyarrow.csv.write_csv(table, as_csv)
    bucket.write(layout.results, as_parquet.getvalue())
    bucket.write(layout.results_csv, as_csv.getvalue())


def last_steps(results: list[Result]) -> list[Result]:
    """Of each SAE the newest checkpoint's row."""
    newest: dict[str, Result] = {}
    for r in results:
        sae = r.path.rsplit("/", 1)[0]  # the folder of its checkpoints
        if sae not in newest or r.step > newest[sae].step:
            newest[sae] = r
    return list(newest.values())


def pareto(results: list[Result], quality: str) -> list[Result]:
    """The rows that no other beats in both L0 and ``quality`` (lower is better for both), by ascending L0.

    A row whose quality is not a number takes no part.
    """
    frontier: list[Result] = []
    measured = [r for r in results if not math.isnan(getattr(r, quality)) and not math.isnan(r.l0)]
    for r in sorted(measured, key=lambda r: (r.l0, getattr(r, quality))):
        if not frontier or getattr(r, quality) < getattr(frontier[-1], quality):
            frontier.append(r)
    return frontier
