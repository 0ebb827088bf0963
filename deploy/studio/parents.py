"""Sum up a sweep over its trainings: states, progress, aggregates and the Pareto frontier."""

from collections.abc import Callable, Sequence

from scopemill.deploy.studio.bucket_reader import SweepFacts
from scopemill.deploy.studio.details import sweep_command
from scopemill.deploy.studio.models.sweeps import Aggregate, Point, SweepDetail, SweepSummary
from scopemill.deploy.studio.models.trainings import State, Training
from scopemill.deploy.studio.trainings import Entry, Trainings, counts_of
from scopemill.proto.storage.bucket import Bucket

AGGREGATED = ("l0", "fvu", "loss", "delta_loss", "recovered_zero", "dead_fraction")


def summaries(trainings: Trainings) -> list[SweepSummary]:
    """List all sweeps, those at work first."""
    found = [summary(sweep, trainings.of_sweep(name)) for name, sweep in trainings.snapshot.sweeps.items()]
    return sorted(found, key=lambda one: (one.state != "running", -(one.updated or 0.0), one.name))


def summary(sweep: SweepFacts, children: Sequence[Entry]) -> SweepSummary:
    """Sum up one sweep."""
    trainings = [entry.training for entry in children]
    counts, progress = counts_of(trainings), sweep.progress
    left = [one.progress.eta for one in trainings if one.progress.eta is not None]
    steps = sum(one.progress.steps for one in trainings)
    return SweepSummary(
        name=sweep.name,
        state=_state(sweep, counts),
        phase=progress.phase or None if progress and sweep.runs else None,
        phase_pct=round(100.0 * progress.done / progress.total, 1) if progress and sweep.runs and progress.total else None,
        reason=_reason(sweep, counts),
        driver=sweep.driver,
        trainings=len(trainings),
        counts=counts,
        progress_pct=round(100.0 * sum(one.progress.step for one in trainings) / steps, 2) if steps else 0.0,
        eta=max(left) if left else None,
        says=progress.says if progress else [],
        report=sweep.report,
        updated=progress.written if progress else None,
    )


def _state(sweep: SweepFacts, counts: dict[State, int]) -> State:
    if sweep.runs:
        return "running"
    if sweep.record is None or counts["pending"] == sum(counts.values()):
        return "pending"
    return "failed" if counts["failed"] else "stopped" if counts["stopped"] or counts["pending"] else "completed"


def _reason(sweep: SweepFacts, counts: dict[State, int]) -> str | None:
    if sweep.record is None:
        return "it is not planned yet" if sweep.config else "it was planned by another version; run it again to see it here"
    if sweep.runs or not any(counts[state] for state in ("pending", "stopped", "failed")):
        return None
    if sweep.note:
        return sweep.note
    if sweep.progress and sweep.progress.error:
        return sweep.progress.error
    return "no driver is at work on it: everything committed is kept, and retry goes on"


def detail(bucket: Bucket, trainings: Trainings, name: str) -> SweepDetail:
    """Show a sweep with its children."""
    sweep, children = trainings.sweep(name), trainings.of_sweep(name)
    items = [entry.training for entry in children]
    return SweepDetail(
        **summary(sweep, children).model_dump(),
        children=items,
        points=points_of(items),
        aggregates=_aggregates(items),
        config=sweep.config,
        command=sweep_command(bucket, name),
    )


def points_of(trainings: Sequence[Training]) -> list[Point]:
    """Return the scatter's points.

    The frontier is of each group, lower L0 and lower error being better.
    """
    points = [_point(one) for one in trainings]
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    for group in groups.values():
        _mark(group, lambda point: point.fvu, "pareto_fvu")
        _mark(group, lambda point: point.delta_loss, "pareto_delta_loss")
    return points


def _point(training: Training) -> Point:
    quality, progress = training.quality, training.progress
    place = training.name.rsplit("/", 1)[0] if training.sparsity is not None else training.name
    return Point(
        id=training.id,
        name=training.name,
        group=place,
        sparsity=training.sparsity,
        l0=quality.l0 if quality else progress.l0,
        fvu=quality.fvu if quality else progress.fvu,
        delta_loss=quality.delta_loss if quality else None,
        measured=quality is not None,
        pareto_fvu=False,
        pareto_delta_loss=False,
    )


def _mark(group: Sequence[Point], error_of: Callable[[Point], float | None], field: str) -> None:
    best: float | None = None
    both = [(point.l0, error, point) for point in group if point.l0 is not None and (error := error_of(point)) is not None]
    for _, error, point in sorted(both, key=lambda one: one[:2]):
        if best is None or error < best:
            best = error
            setattr(point, field, True)


def _aggregates(trainings: Sequence[Training]) -> dict[str, Aggregate]:
    found = {}
    for name in AGGREGATED:
        measured = [getattr(one.quality, name, None) for one in trainings]
        trained = [getattr(one.progress, name, None) for one in trainings]
        values = [first if first is not None else other for first, other in zip(measured, trained, strict=True)]
        known = [value for value in values if value is not None]
        if known:
            found[name] = Aggregate(least=min(known), mean=sum(known) / len(known), most=max(known))
    return found
