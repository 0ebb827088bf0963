"""Show what fine-tuning brought, arm by arm."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from scopemill.evaluator.fidelity.finetuned import Finetuned

COLUMNS = ("SAE", "\u0394 loss before", "after", "FVU before", "after", "L0 before", "after")


def finetuned_rows(records: Mapping[str, Finetuned]) -> list[tuple[str, ...]]:
    """Return a row of text for each fine-tuned SAE, in the order of ``COLUMNS``."""
    return [(name, *_figures(record)) for name, record in records.items()]


def finetuned_table(records: Mapping[str, Finetuned]) -> Table:
    """Lay the fine-tuned SAEs out as a table, a row for each."""
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "SAE" else "right", overflow="fold")
    for row in finetuned_rows(records):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _figures(record: Finetuned) -> list[str]:
    """Return delta loss, FVU and L0, each before and after."""
    both = (record.before, record.after)
    deltas = [f"{figures['loss_spliced'] - record.loss_clean:+.4f}" for figures in both]
    return [*deltas, *(f"{figures['fvu']:.4f}" for figures in both), *(f"{figures['l0']:.1f}" for figures in both)]
