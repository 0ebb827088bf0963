"""The table of a sweep's probes."""

import csv
import io
from dataclasses import asdict

import pyarrow.parquet as parquet
import pytest

from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.evaluator.probes.scores import ProbeScore
from scopemill.evaluator.probes.table import write_probes
from scopemill.proto.layout import SweepLayout

LAYOUT = SweepLayout("s")
RESULT = Result(
    hook="blocks.3.hook_resid_post", layer=3, site="resid_post", architecture="topk", width=64, sparsity=4.0, step=5, tokens=5, l0=4.0,
    fvu=0.1, dead_fraction=0.0, loss_clean=1.0, loss_spliced=1.0, loss_zero_ablated=2.0, loss_mean_ablated=2.0, delta_loss=0.0,
    recovered_zero=1.0, recovered_mean=1.0, path="saes/a/checkpoints/5",
)  # fmt: skip
SCORES = (ProbeScore("92_glue_sst2", "sae", 1, 0.7, 0.65, 300), ProbeScore("92_glue_sst2", "residual", 16, 0.9, 0.85, 300))


def evaluation(probes=SCORES) -> Evaluation:
    return Evaluation(RESULT, Histogram([-1.0, 0.0], [3], 1), 1000, {"sequences": 8}, probes=probes)


def test_each_probe_of_each_checkpoint_is_a_row_in_both_files(bucket):
    write_probes(bucket, LAYOUT, [evaluation(), evaluation(())])
    rows = parquet.read_table(io.BytesIO(bucket.read(LAYOUT.probes))).to_pylist()
    assert [row["k"] for row in rows] == [1, 16]
    for row, score in zip(rows, SCORES, strict=True):
        assert row.items() >= asdict(score).items() and row["path"] == RESULT.path and row["l0"] == 4.0
    from_csv = list(csv.DictReader(io.StringIO(bucket.read(LAYOUT.probes_csv).decode())))
    assert [{name: type(rows[0][name])(value) for name, value in row.items()} for row in from_csv] == rows


@pytest.mark.parametrize("probes", [SCORES, ()])
def test_probes_come_back_from_an_evaluations_record(bucket, probes):
    bucket.write("metrics.json", evaluation(probes).to_record())
    read = Evaluation.read(bucket, "metrics.json")
    assert read.probes == probes and read.result.path == RESULT.path
    assert (b"probes" in bucket.read("metrics.json")) == bool(probes), "a record without probes is as it was before there were any"
