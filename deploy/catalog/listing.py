"""List a bucket's finished SAEs with their quality, and those that were stopped early."""

from dataclasses import dataclass
from fnmatch import fnmatch

from rich.table import Table

from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.stopped import read_stopped
from scopemill.evaluator.fidelity.results import Evaluation, Result
from scopemill.proto.errors import InputError
from scopemill.proto.finished import is_finished
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket


@dataclass(frozen=True)
class FinishedEntry:
    """Describe one finished SAE of a bucket."""

    folder: str  # below saes/
    quality: Result | None  # None: not evaluated


def finished_folders(bucket: Bucket, pattern: str) -> list[str]:
    """Return the folders of finished SAEs whose path below ``saes/`` matches a pattern.

    Raises InputError if none does.
    """
    return _finished(bucket, bucket.find("saes"), pattern)


def finished_entries(source: str, pattern: str = "*") -> list[FinishedEntry]:
    """Read the finished SAEs of a bucket, by one listing and their metrics.

    Raises InputError if none matches.
    """
    bucket = Bucket(source)
    objects = bucket.find("saes")
    there = set(objects)

    def entry(folder: str) -> FinishedEntry:
        path = SaeLayout(folder).metrics
        evaluation = Evaluation.find(bucket, path) if path in there else None
        return FinishedEntry(folder.removeprefix("saes/"), evaluation.result if evaluation else None)

    return side_by_side(entry, _finished(bucket, objects, pattern))


def stopped_early(source: str, pattern: str = "*") -> dict[str, str]:
    """Return the folders of SAEs stopped before their end, and the reason of each.

    The folders are paths below ``saes/``.
    """
    bucket = Bucket(source)
    objects = set(bucket.find("saes"))
    layouts = [SaeLayout(path.removesuffix("/stopped.json")) for path in sorted(objects) if path.endswith("/stopped.json")]
    chosen = [layout for layout in layouts if layout.config not in objects and fnmatch(layout.root.removeprefix("saes/"), pattern)]
    found = zip(chosen, side_by_side(lambda layout: read_stopped(bucket, layout), chosen), strict=True)
    return {layout.root.removeprefix("saes/"): stopped.reason for layout, stopped in found if stopped}


def finished_table(entries: list[FinishedEntry]) -> Table:
    """Lay the finished SAEs out as a table, a row for each."""
    table = Table(box=None, pad_edge=False)
    for column in ("SAE", "L0", "FVU", "delta loss", "recovered (zero)", "dead"):
        table.add_column(column, justify="left" if column == "SAE" else "right", overflow="fold")
    for entry in entries:
        q = entry.quality
        numbers = (f"{q.l0:.1f}", f"{q.fvu:.3f}", f"{q.delta_loss:.3f}", f"{q.recovered_zero:.3f}", f"{q.dead_fraction:.1%}") if q else ()
        table.add_row(entry.folder, *numbers)
    return table


def _finished(bucket: Bucket, objects: list[str], pattern: str) -> list[str]:
    folders = [path.removesuffix("/cfg.json") for path in objects if path.endswith("/cfg.json")]
    matching = [folder for folder in folders if fnmatch(folder.removeprefix("saes/"), pattern)]
    finished = side_by_side(lambda folder: is_finished(bucket, SaeLayout(folder)), matching)
    chosen = [folder for folder, whole in zip(matching, finished, strict=True) if whole]
    if not chosen:
        found = f"{len(folders)} finished SAEs, such as {folders[0].removeprefix('saes/')}" if folders else "no finished SAE"
        raise InputError(f"nothing in {bucket.url} matches {pattern!r}: it holds {found}")
    return chosen
