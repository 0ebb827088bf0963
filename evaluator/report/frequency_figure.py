"""Plot firing frequencies: how many latents fire how often."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scopemill.evaluator.fidelity.results import Evaluation, last_steps
from scopemill.evaluator.report.axes import note, plain_ticks
from scopemill.evaluator.report.numbers import span
from scopemill.evaluator.report.panels import grid_of_hooks, only_text
from scopemill.evaluator.report.style import STYLE, SaeStyles


@matplotlib.rc_context(STYLE)
def frequency_figure(evaluations: list[Evaluation]) -> Figure:
    """Plot the firing frequencies of each final checkpoint's latents, a panel per hook.

    A note in the panel gives the share of latents that never fire.
    """
    by_result = {e.result: e for e in evaluations}
    final = [by_result[r] for r in last_steps(list(by_result))]
    if not final:
        return only_text("No checkpoint has been evaluated.")
    results = [e.result for e in final]
    styles = SaeStyles.of(results)
    x_label = "firing frequency (log10 of the share of tokens)"
    figure, panels = grid_of_hooks(results, styles.line_keys(), x_label, "latents per bin (% of the width)")
    top = 0.0
    for hook, ax in panels.items():
        of_hook = [e for e in final if e.result.hook == hook]
        for e in of_hook:
            heights = 100 * np.asarray(e.histogram.counts) / _latents(e)
            colour, line = styles.shade(e.result), styles.line[e.result.architecture]
            ax.stairs(heights, e.histogram.edges, baseline=None, color=colour, ls=line, lw=1.1)
            top = max(top, heights.max(initial=0))
        never = [100 * e.histogram.never / _latents(e) for e in of_hook]
        note(ax, f"never fire: {span(never, '{:.1f}'.format)}%", vertical="top")
    low, high = _frequency_range(final)
    for ax in panels.values():
        ax.set(xlim=(low, high), ylim=(0, (top or 1) * 1.18))  # room for the note
        plain_ticks(ax, "x", whole=True)
        plain_ticks(ax, "y")
    return figure


def _latents(evaluation: Evaluation) -> int:
    """Return the number of latents, at least 1."""
    return max(sum(evaluation.histogram.counts) + evaluation.histogram.never, 1)


def _frequency_range(evaluations: list[Evaluation]) -> tuple[float, float]:
    """Return the log10 frequencies between which the latents of all SAEs lie, with a margin."""
    low, high = [], []
    for e in evaluations:
        filled = np.flatnonzero(e.histogram.counts)
        if len(filled):
            low.append(e.histogram.edges[filled[0]])
            high.append(e.histogram.edges[filled[-1] + 1])
    return (min(low) - 0.1, max(high) + 0.1) if low else (-6.0, 0.0)
