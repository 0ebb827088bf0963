"""Every architecture on the demo's language model: the plots and the table of docs/training-guide.md.

``python tests/bench/frontiers.py`` harvests once, trains three sparsities of each architecture for half a million tokens,
evaluates them, and writes docs/images/frontiers.png; the bucket, ./guide-bucket, is kept, so a second run only draws.
Architectures may be named; then it is those alone.
"""

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from scopemill.deploy.catalog.status import read_status
from scopemill.deploy.cluster.ray_cluster import local_cluster
from scopemill.deploy.demo.run import MODEL
from scopemill.deploy.demo.standard_library import write_corpus
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import parse_sweep
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.fidelity.results import Result

BUCKET = Path("guide-bucket")
IMAGE = Path("docs/images/frontiers.png")
KS = (16, 32, 64)


@dataclass(frozen=True)
class Kind:
    sparsities: tuple[float, ...]
    fields: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "standard": Kind((4e-2, 0.1, 0.2)),
    "gated": Kind((2e-2, 5e-2, 0.12)),
    "jumprelu": Kind((7e-4, 1.5e-3, 3e-3)),
    "topk": Kind(KS),
    "batchtopk": Kind(KS),
    "matryoshka": Kind(KS),
    "skip": Kind((7e-4, 1.5e-3, 3e-3)),
    "crosscoder": Kind((1.5e-3, 3e-3, 6e-3)),
    "transcoder": Kind((7e-4, 1.5e-3, 3e-3)),
    "skip_transcoder": Kind(KS, {"activation": "topk"}),
    "per_layer_transcoder": Kind((1.5e-3, 3e-3, 6e-3)),
    "clt": Kind((1.5e-3, 3e-3, 6e-3)),
}
PAIRED = ("transcoder", "skip_transcoder", "per_layer_transcoder", "clt")


def results_of(architecture: str, kind: Kind) -> list[Result]:
    """Harvest, train and evaluate what is not done yet; the last checkpoints' rows at layer 4, or over layers 2 and 4."""
    paired = architecture in PAIRED
    layers = [2, 4] if architecture in ("crosscoder", "clt", "per_layer_transcoder") else [4]
    sites = ["mlp_in", "mlp_out"] if paired else ["resid_post"]
    data = {
        "name": f"guide-{architecture.replace('_', '-')}", "bucket": str(BUCKET), "model": str(MODEL),
        "corpus": {"source": str(BUCKET / "corpus" / "train.jsonl"), "format": "jsonl"},
        "harvest": {
            "dataset": f"guide-{len(layers)}-{sites[0]}", "layers": layers, "sites": sites, "tokens": 589_824, "rows_per_shard": 65_536,
            "context_length": 128, "sequences_per_forward": 64, "calibration_rows": 16_384, "actors": 1, "cpus": 2,
        },
        "server": {"shards_side_by_side": 4, "window_mib": 256},
        "train": {
            "template": "quick", "architecture": architecture, "widths": [1024], "sparsities": list(kind.sparsities), "tokens": 500_000,
            "checkpoint_every": 10_000, "cpus": 0.5,
        } | kind.fields,
        "evaluation": {
            "corpus": {"source": str(BUCKET / "corpus" / "held_out.jsonl"), "format": "jsonl"}, "sequences": 64,
            "sequences_per_forward": 64, "cpus": 2, "checkpoints": "last",
        },
    }  # fmt: skip
    plan = plan_sweep(parse_sweep(data, "frontiers.py"))
    driver = SweepDriver(plan, Reporter(Console(file=io.StringIO())))
    if driver.has_work(("harvest", "train", "evaluate")):
        with local_cluster(num_cpus=4):
            driver.harvest()
            driver.train()
            driver.evaluate()
    return [e.result for sae in read_status(plan.bucket, plan.record).saes for e in sae.evaluations]


def draw(results: dict[str, list[Result]]) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
    groups = [[a for a in results if a not in PAIRED], [a for a in results if a in PAIRED]]
    for row, (architectures, title) in zip(panels, zip(groups, ("residual stream", "MLP, input to output"), strict=True), strict=True):
        for ax, (quality, label) in zip(row, (("fvu", "FVU"), ("delta_loss", "delta loss (nats per token)")), strict=True):
            for colour, architecture in zip(plt.cm.tab10.colors, architectures, strict=False):
                points = sorted((r.l0, getattr(r, quality)) for r in results[architecture])
                ax.plot(*zip(*points, strict=True), "o-", color=colour, label=architecture, lw=1.2, ms=4)
            ax.set(
                xscale="log", yscale="log", xlabel="L0 (active latents per token)", ylabel=label, title=f"{title}: {label.split(' (')[0]}"
            )
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.25, lw=0.5)
        row[1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGE, dpi=110)


def main() -> None:
    write_corpus(BUCKET / "corpus")
    results = {}
    for architecture in sys.argv[1:] or KINDS:
        results[architecture] = results_of(architecture, KINDS[architecture])
        points = [f"L0 {r.l0:.0f} FVU {r.fvu:.3f} delta loss {r.delta_loss:.3f}" for r in results[architecture]]
        print(f"{architecture}: {'; '.join(points)}", flush=True)
    table = Table("architecture", "sparsity", "L0", "FVU", "delta loss", "recovered (zero)", "dead")
    for architecture, rows in results.items():
        for r in sorted(rows, key=lambda r: r.l0):
            numbers = (
                f"{r.sparsity:g}",
                f"{r.l0:.1f}",
                f"{r.fvu:.3f}",
                f"{r.delta_loss:.3f}",
                f"{r.recovered_zero:.3f}",
                f"{r.dead_fraction:.1%}",
            )
            table.add_row(architecture, *numbers)
    Console(width=120).print(table)
    draw(results)


if __name__ == "__main__":
    main()
