"""The sweep's table: its columns, its two files, and what is chosen from it."""

import csv
import io
import math

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result, last_steps, pareto, write_table
from scopemill.proto.layout import SweepLayout

COLUMNS = {
    "hook": pa.string(),
    "layer": pa.int64(),
    "site": pa.string(),
    "architecture": pa.string(),
    "width": pa.int64(),
    "sparsity": pa.float64(),
    "step": pa.int64(),
    "tokens": pa.int64(),
    "l0": pa.float64(),
    "fvu": pa.float64(),
    "dead_fraction": pa.float64(),
    "loss_clean": pa.float64(),
    "loss_spliced": pa.float64(),
    "loss_zero_ablated": pa.float64(),
    "loss_mean_ablated": pa.float64(),
    "delta_loss": pa.float64(),
    "recovered_zero": pa.float64(),
    "recovered_mean": pa.float64(),
    "path": pa.string(),
    "l0_kept": pa.float64(),
    "fvu_kept": pa.float64(),
    "delta_loss_kept": pa.float64(),
    "decoder_cosine": pa.float64(),
}
LAYOUT = SweepLayout("s")


def make(**changes) -> Result:
    values = dict(
        hook="blocks.3.hook_resid_post", layer=3, site="resid_post", architecture="jumprelu", width=2048, sparsity=0.02,
        step=500, tokens=512_000, l0=51.37, fvu=1 / 3, dead_fraction=0.125,
        loss_clean=2.1, loss_spliced=2.4, loss_zero_ablated=9.0, loss_mean_ablated=5.5,
        delta_loss=0.3, recovered_zero=0.95, recovered_mean=0.91, path="saes/m/h/width_2k/jumprelu/a/checkpoints/00000500",
        decoder_cosine=0.07,
    )  # fmt: skip
    return Result(**values | changes)


def read_parquet(bucket) -> pa.Table:
    return parquet.read_table(io.BytesIO(bucket.read(LAYOUT.results)))


def read_csv(bucket) -> list[dict]:
    return list(csv.DictReader(io.StringIO(bucket.read(LAYOUT.results_csv).decode())))


def test_the_table_has_exactly_these_columns_in_this_order(bucket):
    write_table(bucket, LAYOUT, [make()])
    schema = read_parquet(bucket).schema
    assert schema.names == list(COLUMNS) and [schema.field(name).type for name in COLUMNS] == list(COLUMNS.values())
    assert bucket.read(LAYOUT.results_csv).decode().splitlines()[0].replace('"', "").split(",") == list(COLUMNS)


def test_a_table_without_rows_has_its_columns(bucket):
    write_table(bucket, LAYOUT, [])
    assert read_parquet(bucket).num_rows == 0 and read_parquet(bucket).schema.names == list(COLUMNS)
    assert read_csv(bucket) == []


def test_parquet_and_csv_say_the_same_to_the_last_bit(bucket):
    results = [
        make(),
        make(l0=0.0, fvu=5e-324, sparsity=6e-4, delta_loss=-0.0),
        make(l0=math.pi * 1e7, fvu=1e300, width=2**20, tokens=16 * 10**9),
        make(hook='one, with "quotes"', path="a,b", l0_kept=0.1, fvu_kept=0.311, delta_loss_kept=-1e-9),
    ]
    write_table(bucket, LAYOUT, results)
    rows = read_parquet(bucket).to_pylist()
    assert rows == [vars(r) for r in results]
    assert all(row[name] == "" for row in read_csv(bucket)[:-1] for name in ("l0_kept", "fvu_kept", "delta_loss_kept")), "not zero"
    read = [{k: type(vars(r)[k])(v) if v else None for k, v in row.items()} for row, r in zip(read_csv(bucket), results, strict=True)]
    assert read == rows


def test_a_number_that_is_none_survives_in_both(bucket):
    write_table(bucket, LAYOUT, [make(fvu=float("nan"), recovered_zero=float("inf"))])
    row = read_parquet(bucket).to_pylist()[0]
    assert math.isnan(row["fvu"]) and row["recovered_zero"] == math.inf
    row = read_csv(bucket)[0]
    assert math.isnan(float(row["fvu"])) and float(row["recovered_zero"]) == math.inf


def test_a_table_replaces_the_one_before(bucket):
    write_table(bucket, LAYOUT, [make(), make()])
    write_table(bucket, LAYOUT, [make(step=1000)])
    assert read_parquet(bucket).column("step").to_pylist() == [1000]


def test_an_evaluation_comes_back_from_its_record(bucket):
    evaluation = Evaluation(make(), Histogram([-1.0, -0.5, 0.0], [3, 4], 2), 1000, {"sequences": 8, "corpus": None})
    bucket.write("metrics.json", evaluation.to_record())
    assert Evaluation.read(bucket, "metrics.json") == evaluation


def test_of_each_sae_the_newest_checkpoint_is_chosen():
    """An SAE is the folder of its checkpoints: two may differ in nothing else that the table shows, such as the seed."""

    def at(sae: str, step: int) -> Result:
        return make(step=step, path=f"saes/m/h/width_2k/{sae}/checkpoints/{step:08d}")

    results = [
        at("jumprelu/a", 500),
        at("jumprelu/a", 1000),
        at("jumprelu/a", 999),
        at("jumprelu/b", 500),
        at("jumprelu/b", 250),
        at("standard/a", 10),
    ]
    assert last_steps(results) == [results[1], results[3], results[5]]
    assert last_steps([]) == []
    assert sorted(last_steps(results[::-1]), key=repr) == sorted(last_steps(results), key=repr), "in whatever order they come"


def dominates(a: Result, b: Result) -> bool:
    """No worse in both, and better in one."""
    return a.l0 <= b.l0 and a.fvu <= b.fvu and (a.l0 < b.l0 or a.fvu < b.fvu)


few = st.integers(0, 6).map(float)  # few values, so that ties are common


@given(st.lists(st.tuples(few, few), max_size=12))
def test_the_frontier_is_what_no_other_row_dominates(points):
    results = [make(l0=l0, fvu=fvu, step=i + 1) for i, (l0, fvu) in enumerate(points)]
    expected = {(r.l0, r.fvu) for r in results if not any(dominates(other, r) for other in results)}
    found = pareto(results, "fvu")
    assert {(r.l0, r.fvu) for r in found} == expected and len(found) == len(expected), "of equal rows one stands for all"
    assert all(r in results for r in found)
    assert [r.l0 for r in found] == sorted(r.l0 for r in found)


@pytest.mark.parametrize("quality", ["fvu", "delta_loss"])
def test_the_frontier_is_of_the_quality_that_is_asked_for(quality):
    other = "delta_loss" if quality == "fvu" else "fvu"
    good, bad = make(l0=10.0, **{quality: 0.1, other: 0.9}), make(l0=20.0, **{quality: 0.2, other: 0.1})
    assert pareto([bad, good], quality) == [good]


def test_a_row_whose_quality_is_no_number_is_not_on_the_frontier_and_hides_nobody():
    """Such as that of an SAE whose training diverged: it fires on nothing, so its L0 is the lowest of all."""
    diverged = make(l0=0.0, fvu=float("nan"))
    sound = [make(l0=5.0, fvu=0.5), make(l0=9.0, fvu=0.25)]
    assert pareto([diverged, *sound], "fvu") == sound
    assert pareto([diverged], "fvu") == []
    assert pareto([make(l0=float("nan")), *sound], "fvu") == sound


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.3.hook_resid_post", "layer 3 \u00b7 resid_post"),
        ("blocks.3.mlp.hook_in--blocks.3.hook_mlp_out", "blocks.3.mlp.hook_in--blocks.3.hook_mlp_out"),
        ("resid_post.2-4", "resid_post.2-4"),
    ],
)
def test_a_place_names_all_that_is_read_and_rebuilt(hook, place):
    assert make(hook=hook).place == place
