"""Which finished SAEs a bucket holds, how good they are, and which were stopped early."""

from dataclasses import dataclass
from fnmatch import fnmatch

from rich.table import Table

from scopemill.deploy.plan.stopped import read_stopped
from scopemill.evaluator.fidelity.results import Evaluation, Result
from scopemill.proto.errors import InputError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket


@dataclass(frozen=True)
class FinishedEntry:
    folder: str  # below saes/
    quality: Result | None  # None: not evaluated


def finished_folders(bucket: Bucket, pattern: str) -> list[str]:
    """The folders of finished SAEs whose path below ``saes/`` matches a pattern. InputError if none does."""
    folders = [path.removesuffix("/cfg.json") for path in bucket.find("saes") if path.endswith("/cfg.json")]
    chosen = [folder for folder in folders if fnmatch(folder.removeprefix("saes/"), pattern)]
    if not chosen:
        found = f"{len(folders)} finished SAEs, such as {folders[0].removeprefix('saes/')}" if folders else "no finished SAE"
        raise InputError(f"nothing in {bucket.url} matches {pattern!r}: it holds {found}")
    return chosen


def finished_entries(source: str, pattern: str = "*") -> list[FinishedEntry]:
    bucket = Bucket(source)
    entries = []
    for folder in finished_folders(bucket, pattern):
        path = SaeLayout(folder).metrics
        quality = Evaluation.read(bucket, path).result if bucket.exists(path) else None
        entries.append(FinishedEntry(folder.removeprefix("saes/"), quality))
    return entries


def stopped_early(source: str, pattern: str = "*") -> dict[str, str]:
    """Folders below ``saes/`` of SAEs that rivals outdid before they were finished, and why each was stopped."""
    bucket = Bucket(source)
    layouts = [SaeLayout(path.removesuffix("/stopped.json")) for path in bucket.find("saes") if path.endswith("/stopped.json")]
    told = {layout.root.removeprefix("saes/"): read_stopped(bucket, layout).why for layout in layouts if not bucket.exists(layout.config)}
    return {folder: why for folder, why in told.items() if fnmatch(folder, pattern)}


def finished_table(entries: list[FinishedEntry]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("SAE", "L0", "FVU", "delta loss", "recovered (zero)", "dead"):
        table.add_column(column, justify="left" if column == "SAE" else "right", overflow="fold")
    for entry in entries:
        q = entry.quality
        numbers = (f"{q.l0:.1f}", f"{q.fvu:.3f}", f"{q.delta_loss:.3f}", f"{q.recovered_zero:.3f}", f"{q.dead_fraction:.1%}") if q else ()
        table.add_row(entry.folder, *numbers)
    return table
