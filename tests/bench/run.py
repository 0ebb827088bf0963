"""The figures of the README, as ratios measured in one run: ``make bench``.

Each pair is alternated and the median of the rounds is taken, because machines drift; nothing here is a test.
"""

from collections.abc import Iterator
from itertools import chain, pairwise

import data_path
import evidence
import pyarrow.parquet as parquet
import steering
import steps
from history import report
from measure import Figure

from scopemill.deploy.demo.run import BUCKET


def demo_figures() -> Iterator[Figure]:
    """From the demo's table, if it was run: the best SAE with L0 of at most 64 at each residual hook."""
    place = BUCKET / "sweeps" / "demo" / "results.parquet"
    rows = parquet.read_table(place).to_pylist() if place.exists() else []
    sparse = [row for row in rows if row["site"].startswith("resid") and row["l0"] <= 64]
    best = {row["hook"]: row for row in sorted(sparse, key=lambda row: row["recovered_zero"])}
    for hook, row in sorted(best.items()):
        raw = {"L0, latents": row["l0"], "FVU, share": row["fvu"]}
        yield Figure(f"demo, {hook}: best recovered_zero at L0 <= 64", row["recovered_zero"], ">= 0.90", raw)


def demo_waits() -> Iterator[Figure]:
    """If the demo was run: of the SAE that waited longest for its data, the share of its training, and the worst interval's of any."""
    shares, intervals = [], []
    for path in BUCKET.glob("saes/**/history.parquet"):
        rows = parquet.read_table(path).to_pylist()
        steps = [later["step"] - before["step"] for before, later in pairwise([{"step": 0}, *rows])]
        seconds = [n / row["steps_per_second"] for n, row in zip(steps, rows, strict=True)]
        waited = [s * row["waiting_share"] for s, row in zip(seconds, rows, strict=True)]
        shares.append(sum(waited) / sum(seconds))
        intervals += [row["waiting_share"] for row in rows]
    if shares:
        yield Figure(
            "demo: waiting for data, of the SAE that waited longest", max(shares), "<= 0.05", {"worst interval, share": max(intervals)}
        )


def main() -> None:
    report(chain(data_path.figures(), steps.figures(), evidence.figures(), steering.figures(), demo_figures(), demo_waits()))


if __name__ == "__main__":
    main()
