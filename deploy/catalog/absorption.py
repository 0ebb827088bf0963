"""Show what was measured of absorption."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.evaluator.absorption.record import Absorption, read_absorption
from scopemill.proto.layout import short_name
from scopemill.proto.storage.bucket import Bucket

COLUMNS = ("SAE", "features", "of", "fraction", "of random", "fully absorbed", "main latents", "their F1")


def read_measured(bucket: Bucket, roots: Sequence[str]) -> list[tuple[str, Absorption]]:
    """Return what was measured of a sweep's SAEs, as their folders hold it."""
    found = side_by_side(lambda root: [(root, record) for record in read_absorption(bucket.place(root))], roots)
    return [one for of_sae in found for one in of_sae]


def absorption_rows(measured: Sequence[tuple[str, Absorption]]) -> list[tuple[str, ...]]:
    """Return a row of text for each record, in the order of ``COLUMNS``."""
    return [(short_name(folder), *_figures(record)) for folder, record in measured]


def absorption_table(measured: Sequence[tuple[str, Absorption]]) -> Table:
    """Lay records of absorption out as a table."""
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("SAE", "of") else "right", overflow="fold")
    for row in absorption_rows(measured):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _figures(record: Absorption) -> list[str]:
    random = "" if record.random_fraction is None else f"{record.random_fraction:.3f}"
    return [
        f"{record.features:,}", record.features_of, f"{record.fraction:.3f}", random, f"{record.full:.3f}", f"{record.main_latents:.2f}",
        f"{record.main_f1:.3f}",
    ]  # fmt: skip
