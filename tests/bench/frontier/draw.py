"""The frontiers as a picture: frontier-MODEL.png."""

from collections.abc import Sequence
from pathlib import Path

from curves import frontier
from jobs import ARCHITECTURES, L0S, PACKAGES, Result
from report import points

IMAGES = Path(__file__).parents[3] / "docs" / "images"


def draw(name: str, results: Sequence[Result], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    shown = [a for a in ARCHITECTURES if any(r.job.architecture == a for r in results)]
    figure, panels = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.6), layout="constrained", sharey=True, squeeze=False)
    for ax, architecture in zip(panels[0], shown, strict=True):
        for colour, package in zip(plt.cm.tab10.colors, PACKAGES, strict=False):
            all_points = points(results, package, architecture)
            best = frontier(all_points)
            ax.plot([p.l0 for p in all_points], [p.fvu for p in all_points], ".", color=colour, alpha=0.4, ms=5)
            ax.plot([p.l0 for p in best], [p.fvu for p in best], "o-", color=colour, label=package, lw=1.2, ms=4)
        ax.set(xscale="log", yscale="log", xlabel="L0 (active latents per row)", title=architecture)
        ax.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlim(L0S[0] / 1.6, L0S[-1] * 1.6)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.25, lw=0.5)
    panels[0][0].set_ylabel("FVU")
    panels[0][0].legend(fontsize=8, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"frontier-{name}.png", dpi=110)
    plt.close(figure)
