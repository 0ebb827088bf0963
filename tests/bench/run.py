"""The figures of the README, as ratios measured in one run: ``make bench``.

Each pair is alternated and the median of the rounds is taken, because machines drift; nothing here is a test.
"""

from collections.abc import Iterator
from itertools import chain

import data_path
import pyarrow.parquet as parquet
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


def main() -> None:
    report(chain(data_path.figures(), steps.figures(), demo_figures()))


if __name__ == "__main__":
    main()
