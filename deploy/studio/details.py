"""Read what one training's own page shows: hyperparameters, curves and checkpoints."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from scopemill.deploy.studio.cache import VersionedCache
from scopemill.deploy.studio.models.histories import Checkpoint, Checkpoints, Comparison, Metrics
from scopemill.deploy.studio.models.trainings import TrainingDetail
from scopemill.deploy.studio.series import COLUMNS, series_of
from scopemill.deploy.studio.trainings import Entry, quality_of
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.errors import CorruptObject, InputError, MissingObject
from scopemill.proto.layout import RESUMABLE, SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record
from scopemill.trainer.training.history import History, Row
from scopemill.trainer.training.monitors import read_rows


def detail(bucket: Bucket, cache: VersionedCache, entry: Entry) -> TrainingDetail:
    """Return a training with its hyperparameters."""
    step = entry.facts.state.step
    config = cache.get(("config", entry.record.root), step, lambda: _config(bucket, entry))
    return TrainingDetail(
        **entry.training.model_dump(),
        config=config,
        command=sweep_command(bucket, entry.sweep.name),
        tries=entry.run.tries if entry.run else 0,
    )


def sweep_command(bucket: Bucket, sweep: str) -> str:
    """Return the command that runs a sweep, or continues it."""
    return f"scopemill sweep {bucket.place(SweepLayout(sweep).config)}"


def _config(bucket: Bucket, entry: Entry) -> dict[str, Any] | None:
    """Return every hyperparameter: of the newest checkpoint, else of the sweep file's ``train`` section."""
    if step := entry.facts.state.step:
        try:
            found: dict[str, Any] = read_record(bucket, entry.record.layout.checkpoint(step).record)["config"]
            return found
        except (MissingObject, CorruptObject, LookupError):
            pass
    section: dict[str, Any] | None = (entry.sweep.config or {}).get("train")
    if section is None:
        return None
    one = {"width": entry.training.width, "sparsity": entry.training.sparsity}
    return {name: value for name, value in section.items() if name not in ("widths", "sparsities", "variants")} | one


def metrics(bucket: Bucket, cache: VersionedCache, entry: Entry, points: int, names: Sequence[str], since: int) -> Metrics:
    """Return a training's curves, from its history and the rows after it."""
    if unknown := [name for name in names if name not in COLUMNS]:
        raise InputError(f"series {', '.join(unknown)}: a training has no such curve: choose from {', '.join(COLUMNS)}")
    version = (entry.facts.state.step, entry.training.progress.step)
    rows = cache.get(("rows", entry.record.root), version, lambda: rows_of(bucket, entry))
    chosen = [row for row in rows if row.step > since]
    newest = rows[-1].step if rows else 0
    return Metrics(id=entry.training.id, step=newest, rows=len(chosen), series=series_of(chosen, points, names))


def rows_of(bucket: Bucket, entry: Entry) -> list[Row]:
    """Return all rows of a training, its history's and those reported since."""
    state, layout = entry.facts.state, entry.record.layout
    rows = History.load(bucket, layout.history, state.step).rows if state.history else []
    last = rows[-1].step if rows else 0
    if entry.training.state != "completed":
        rows = rows + [row for row in read_rows(bucket.place(layout.root)) if row.step > last]
    newest = _newest_row(entry)
    if newest and newest.step > (rows[-1].step if rows else 0):  # fresher than the live objects
        rows = [*rows, newest]
    return rows


def comparison(bucket: Bucket, cache: VersionedCache, entries: Sequence[Entry], points: int, names: Sequence[str]) -> Comparison:
    """Return trainings side by side, and the hyperparameters in which they differ."""
    shown = [detail(bucket, cache, entry) for entry in entries]
    names_of = dict.fromkeys(field for one in shown for field in one.config or {})
    values = {field: [(one.config or {}).get(field) for one in shown] for field in names_of}
    differing = {field: found for field, found in values.items() if any(value != found[0] for value in found)}
    return Comparison(trainings=shown, differing=differing, metrics=[metrics(bucket, cache, one, points, names, 0) for one in entries])


def _newest_row(entry: Entry) -> Row | None:
    """Return the row that the run at work has reported last."""
    if not entry.run or not entry.run.row:
        return None
    given = entry.run.row  # of a driver of another version perhaps, with other columns
    values = {field.name: math.nan if (value := given.get(field.name)) is None else value for field in fields(Row)}
    integers = {name: int(given.get(name) or 0) for name in ("step", "tokens", "dead_latents")}
    return Row(**values | integers)  # type: ignore[arg-type]


def checkpoints(bucket: Bucket, entry: Entry) -> Checkpoints:
    """List a training's checkpoints."""
    layout, state = entry.record.layout, entry.facts.state
    resumable = [step for step in state.checkpoints[-RESUMABLE:] if bucket.exists(layout.checkpoint(step).optimizer)]

    def evaluation(step: int) -> Evaluation | None:
        try:
            return Evaluation.find(bucket, layout.checkpoint(step).metrics) if step in state.measured else None
        except MissingObject:
            return None

    items = [
        Checkpoint(step=step, path=layout.checkpoint(step).root, resumable=step in resumable, quality=quality_of(evaluation(step)))
        for step in state.checkpoints
    ]
    return Checkpoints(id=entry.training.id, items=items)
