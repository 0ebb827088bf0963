"""What the jobs say: tables to read, and a file of figures to keep."""

import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curves import Point, cost_of, fvu_at
from jobs import ARCHITECTURES, L0S, OURS, PACKAGES, Result, version_of_ours
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from history import machine  # noqa: E402

KEPT = Path(__file__).parents[1] / "results" / "frontier"
NEAR = 1.3  # results with an L0 within this factor count where something is said about an L0 itself


def points(results: Sequence[Result], package: str, architecture: str, whole: bool = True) -> list[Point]:
    """Of a package's finished SAEs; ``whole``: of those that saw all rows."""
    own = [r for r in results if (r.job.package, r.job.architecture) == (package, architecture) and r.fvu > 0]
    return [
        Point(r.l0, r.fvu, r.job.steps * r.job.size.batch, r.seconds)
        for r in own
        if not whole or r.job.steps == max(one.job.steps for one in own)
    ]


def near(results: Sequence[Result], package: str, architecture: str, l0: float) -> Result | None:
    """The best of a package's results with about this L0, on all rows."""
    own = [r for r in results if (r.job.package, r.job.architecture) == (package, architecture)]
    full = max((r.job.steps for r in own), default=0)
    close = [r for r in own if r.fvu > 0 and r.job.steps == full and l0 / NEAR <= r.l0 <= l0 * NEAR]
    return min(close, key=lambda r: r.fvu * r.l0**0.5, default=None)


def comparison(results: Sequence[Result], architecture: str, l0: float) -> dict[str, Any]:
    """Of each package: FVU at an L0, dead share, and what ours takes to reach it, as a share of the package's rows and seconds."""
    ours = points(results, OURS, architecture, whole=False)
    told: dict[str, Any] = {"architecture": architecture, "l0": l0}
    for package in PACKAGES:
        close = near(results, package, architecture, l0)
        entry: dict[str, Any] = {"fvu": fvu_at(points(results, package, architecture), l0)}
        if close:
            rows = close.job.steps * close.job.size.batch
            entry |= {"dead": close.dead, "learning_rate": close.job.learning_rate, "rows": rows, "seconds": close.seconds}
        if close and package != OURS and entry["fvu"]:
            for cost, whole in (("rows", rows), ("seconds", close.seconds)):
                spent = cost_of(ours, cost, l0, entry["fvu"])
                entry[f"ours_{cost}"] = spent and spent / whole
        told[package] = entry
    return told


def summary(name: str, results: Sequence[Result], kept: Path = KEPT) -> None:
    """Print the tables, and keep what they are made from."""
    compared = [comparison(results, architecture, l0) for architecture in ARCHITECTURES for l0 in L0S]
    compared = [one for one in compared if any(one[package]["fvu"] for package in PACKAGES)]
    console = Console(width=140)
    console.print(fvu_table(name, compared), cost_table(compared))
    date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H%M%SZ}"
    head = {"date": date, "model": name, "ours": version_of_ours(), "machine": machine(), "load": round(os.getloadavg()[0], 1)}
    kept.mkdir(parents=True, exist_ok=True)
    jobs = [json.loads(r.to_json()) for r in results]
    lines = {part: ",\n  ".join(map(json.dumps, values)) for part, values in (("compared", compared), ("jobs", jobs))}
    body = ",\n".join(f' "{part}": [\n  {text}\n ]' for part, text in lines.items())
    (kept / f"{name}-{date}.json").write_text(json.dumps(head, indent=1).removesuffix("\n}") + f",\n{body}\n}}\n")


def fvu_table(name: str, compared: Sequence[dict[str, Any]]) -> Table:
    table = Table("architecture", "L0", *(f"{package}: FVU (dead)" for package in PACKAGES), "ours / best peer", title=f"{name}: FVU")
    for one in compared:
        peers = [one[package]["fvu"] for package in PACKAGES if package != OURS and one[package]["fvu"]]
        ratio = f"{one[OURS]['fvu'] / min(peers):.3f}" if peers and one[OURS]["fvu"] else ""
        cells = [f"{number(e['fvu'], '.4f')}" + (f" ({e['dead']:.1%})" if "dead" in e else "") for e in (one[p] for p in PACKAGES)]
        table.add_row(one["architecture"], str(one["l0"]), *cells, ratio)
    return table


def cost_table(compared: Sequence[dict[str, Any]]) -> Table:
    peers = [package for package in PACKAGES if package != OURS]
    columns = [f"{cost} / {package}'s" for package in peers for cost in ("rows", "seconds")]
    table = Table("architecture", "L0", *columns, title="Ours to reach a peer's final FVU; empty: not reached, or no peer there")
    for one in compared:
        cells = [number(one[package].get(f"ours_{cost}"), ".2f") for package in peers for cost in ("rows", "seconds")]
        table.add_row(one["architecture"], str(one["l0"]), *cells)
    return table


def number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
