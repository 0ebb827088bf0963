"""Collect results: one row per evaluated checkpoint, the sweep's table, and selections of rows."""

import io
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as parquet

from scopemill.evaluator.probes.scores import ProbeScore
from scopemill.proto.errors import CorruptObject
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record

log = logging.getLogger(__name__)
Quality = Literal["fvu", "delta_loss"]


@dataclass(frozen=True)
class Result:
    """Record one checkpoint's quality.

    Losses are cross-entropies in nats per token; delta = spliced - clean.
    """

    hook: str  # for a transcoder or crosscoder: all hooks that it reads and reconstructs
    layer: int  # of the first hook that the SAE reads
    site: str
    architecture: str
    width: int
    sparsity: float  # from the sweep file: a coefficient, or k
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
    # The same on the rows alone that harvest.outlier_norm keeps, as in training; outliers keep their activations. None without that filter.
    l0_kept: float | None = None
    fvu_kept: float | None = None
    delta_loss_kept: float | None = None
    decoder_cosine: float = math.nan  # root mean square over pairs of decoder rows; results of older versions have none

    @property
    def place(self) -> str:
        """Return the place to show: layer and site of one hook, or all hooks."""
        single = self.hook.startswith("blocks.") and "--" not in self.hook
        return f"layer {self.layer} \u00b7 {self.site}" if single else self.hook


@dataclass(frozen=True)
class Histogram:
    """Count latents by log10 of the share of tokens on which a latent fires."""

    edges: list[float]  # len(counts) + 1, log10
    counts: list[int]
    never: int  # latents that did not fire on any evaluated token


@dataclass(frozen=True)
class Evaluation:
    """Record a checkpoint's evaluation, stored as its ``metrics.json``."""

    result: Result
    histogram: Histogram
    evaluated_tokens: int
    settings: dict[str, Any]  # the settings that decide the numbers, see `jobs.settings_of`
    kept_tokens: int | None = None  # those of the evaluated tokens that harvest.outlier_norm keeps
    probes: tuple[ProbeScore, ...] = ()  # empty: the sweep file asks for none

    def to_record(self) -> bytes:
        """Return the evaluation as checksummed JSON."""
        data = asdict(self)
        return checksummed_record(data if self.probes else {name: value for name, value in data.items() if name != "probes"})

    @staticmethod
    def read(bucket: Bucket, path: str) -> "Evaluation":
        """Read an evaluation.

        Raises CorruptObject if its checksum does not match, or if it is none.
        """
        data = read_record(bucket, path)
        try:
            made = {"result": Result(**data["result"]), "histogram": Histogram(**data["histogram"])}
            return Evaluation(**data | made | {"probes": tuple(ProbeScore(**score) for score in data.get("probes", ()))})
        except (LookupError, TypeError) as error:
            raise CorruptObject(f"{bucket.place(path)} is not an evaluation: {type(error).__name__} {error}") from error

    @staticmethod
    def find(bucket: Bucket, path: str) -> "Evaluation | None":
        """Read an evaluation; return None, with a warning, for a damaged one."""
        try:
            return Evaluation.read(bucket, path)
        except CorruptObject as error:
            log.warning("an evaluation is left out: %s", error)
            return None


_ARROW_TYPES: dict[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), float | None: pa.float64(), str: pa.string()}
SCHEMA = pa.schema([(f.name, _ARROW_TYPES[f.type]) for f in fields(Result)])


def write_table(bucket: Bucket, layout: SweepLayout, results: list[Result]) -> None:
    """Write the table of a sweep as Parquet and as CSV."""
    table = pa.Table.from_pylist([asdict(r) for r in results], schema=SCHEMA)
    as_parquet, as_csv = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, as_parquet)
    pyarrow.csv.write_csv(table, as_csv)
    bucket.write(layout.results, as_parquet.getvalue())
    bucket.write(layout.results_csv, as_csv.getvalue())


def in_order(results: Iterable[Result]) -> list[Result]:
    """Sort results by layer, site, architecture, width, sparsity and step."""
    return sorted(results, key=lambda r: (r.layer, r.site, r.hook, r.architecture, r.width, r.sparsity, r.step))


def last_steps(results: list[Result]) -> list[Result]:
    """Return the row of each SAE's newest checkpoint."""
    newest: dict[str, Result] = {}
    for r in results:
        sae = r.path.rsplit("/", 1)[0]  # the folder of the SAE's checkpoints
        if sae not in newest or r.step > newest[sae].step:
            newest[sae] = r
    return list(newest.values())


def pareto(results: list[Result], quality: Quality) -> list[Result]:
    """Return the Pareto frontier of L0 and ``quality``, by ascending L0.

    Lower is better for both. Rows whose L0 or quality is NaN are ignored.
    """
    frontier: list[Result] = []
    measured = [r for r in results if not math.isnan(getattr(r, quality)) and not math.isnan(r.l0)]
    for r in sorted(measured, key=lambda r: (r.l0, getattr(r, quality))):
        if not frontier or getattr(r, quality) < getattr(frontier[-1], quality):
            frontier.append(r)
    return frontier
