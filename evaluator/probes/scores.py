"""Hold the scores of probes, their means over tasks, and the sweep's table of them."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as parquet

from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket

if TYPE_CHECKING:
    from scopemill.evaluator.fidelity.results import Evaluation

SAE, RANDOM_DECODER, RANDOM_ENCODER, RESIDUAL = "sae", "random decoder", "random encoder", "residual"


@dataclass(frozen=True)
class ProbeScore:
    """Record the score of one probe on one task."""

    task: str
    latents_of: str  # "sae", "random decoder" or "random encoder"; "residual" is the dense probe of the activation itself
    k: int  # the number of latents, or of the activation's columns
    auc: float
    accuracy: float
    prompts: int  # of training and test together


@dataclass(frozen=True)
class ProbeSummary:
    """Hold the mean AUC of an SAE's probes over all tasks."""

    tasks: int
    auc: dict[int, dict[str, float]]  # by k, then by the latents' owner
    residual: float

    @staticmethod
    def of(scores: Sequence[ProbeScore]) -> "ProbeSummary":
        """Average scores over tasks."""

        def mean(owner: str, k: int | None) -> float:
            chosen = [score.auc for score in scores if score.latents_of == owner and k in (score.k, None)]
            return sum(chosen) / len(chosen)

        ks = sorted({score.k for score in scores if score.latents_of == SAE})
        auc = {k: {owner: mean(owner, k) for owner in (SAE, RANDOM_DECODER, RANDOM_ENCODER)} for k in ks}
        return ProbeSummary(len({score.task for score in scores}), auc, mean(RESIDUAL, None))


_TYPES = {"layer": pa.int64(), "width": pa.int64(), "step": pa.int64(), "k": pa.int64(), "prompts": pa.int64()}
_NUMBERS = {"sparsity", "l0", "auc", "accuracy"}
_OF_SAE = ("hook", "layer", "site", "architecture", "width", "sparsity", "step", "l0", "path")
_OF_SCORE = ("task", "latents_of", "k", "auc", "accuracy", "prompts")
SCHEMA = pa.schema([(n, _TYPES.get(n, pa.float64() if n in _NUMBERS else pa.string())) for n in (*_OF_SAE, *_OF_SCORE)])


def write_probes(bucket: Bucket, layout: SweepLayout, evaluations: Sequence["Evaluation"]) -> None:
    """Write the table of all probes as Parquet and as CSV.

    It has one row per checkpoint, task and probe.
    """
    rows = [{name: getattr(e.result, name) for name in _OF_SAE} | asdict(score) for e in evaluations for score in e.probes]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    as_parquet, as_csv = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, as_parquet)
    pyarrow.csv.write_csv(table, as_csv)
    bucket.write(layout.probes, as_parquet.getvalue())
    bucket.write(layout.probes_csv, as_csv.getvalue())
