"""What was measured, when and where: a table to read, and a file for each run in ``results/``."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measure import Figure
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def report(figures: Iterable[Figure], results: Path = RESULTS) -> None:
    """Take the figures, tell each as it comes, then print them beside those of the run before on the same machine, and keep them."""
    # the load is that of others only as long as nothing has been measured
    run = {"date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H%M%SZ}", "commit": _commit(), "torch": torch.__version__}
    run |= {"load": round(os.getloadavg()[0], 1), "machine": machine()}
    console, taken = Console(width=140), []
    for figure in figures:
        console.print(f"{figure.name}: {_short(figure.measured)}", style="dim", highlight=False)
        taken.append(figure)
    console.print(_table(run, taken, before(run["machine"], results)))
    _keep(run, taken, results)


def machine() -> dict[str, Any]:
    """What tells machines apart whose figures are not to be compared."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": _cpu(), "cores": os.cpu_count() or 1, "memory_gib": round(memory / 2**30)}


def before(on: dict[str, Any], results: Path = RESULTS) -> dict[str, float]:
    """By name, each figure that was kept last on a machine."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    return {figure["name"]: figure["measured"] for run in runs if run["machine"] == on for figure in run["figures"]}


def _table(run: dict[str, Any], figures: list[Figure], last: dict[str, float]) -> Table:
    where = f"{run['machine']['cpu']}, {run['machine']['cores']} cores, {run['machine']['memory_gib']} GiB"
    title = f"{where}, torch {run['torch']}, {run['date']}, commit {run['commit']}, load {run['load']} at the start"
    table = Table("figure", "measured", "before", "goal", "made from", title=title, title_justify="left")
    for figure in figures:
        raw = ", ".join(f"{name.rsplit(', ', 1)[0]} {_short(value)} {name.rsplit(', ', 1)[1]}" for name, value in figure.raw.items())
        table.add_row(figure.name, _short(figure.measured), _short(last.get(figure.name)), figure.goal, raw)
    return table


def _keep(run: dict[str, Any], figures: list[Figure], results: Path) -> None:
    """One figure a line, so that two runs can be compared by their lines."""
    lines = [json.dumps(asdict(figure) | {"measured": _rounded(figure.measured), "raw": _all_rounded(figure.raw)}) for figure in figures]
    head = json.dumps(run, indent=1).removesuffix("\n}")
    results.mkdir(exist_ok=True)
    text = head + ',\n "figures": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
    (results / f"{run['date']}.json").write_text(text, encoding="utf-8")


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _all_rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: _rounded(value) for name, value in values.items()}


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """Of the working copy; empty outside one."""
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return asked.stdout.strip()
