"""Write the table of a sweep's probes."""

import io
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as parquet

from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket

_TYPES = {"layer": pa.int64(), "width": pa.int64(), "step": pa.int64(), "k": pa.int64(), "prompts": pa.int64()}
_NUMBERS = {"sparsity", "l0", "auc", "accuracy"}
_OF_SAE = ("hook", "layer", "site", "architecture", "width", "sparsity", "step", "l0", "path")
_OF_SCORE = ("task", "latents_of", "k", "auc", "accuracy", "prompts")
SCHEMA = pa.schema([(n, _TYPES.get(n, pa.float64() if n in _NUMBERS else pa.string())) for n in (*_OF_SAE, *_OF_SCORE)])


def write_probes(bucket: Bucket, layout: SweepLayout, evaluations: Sequence[Evaluation]) -> None:
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
