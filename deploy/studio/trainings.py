"""Tell the trainings of a snapshot: the state of each, its progress and its quality."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scopemill.deploy.plan.progress import SaeProgress
from scopemill.deploy.plan.record import SaeRecord
from scopemill.deploy.studio.bucket_reader import SaeFacts, Snapshot, SweepFacts
from scopemill.deploy.studio.models.trainings import Progress, Quality, State, Training
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.errors import MissingObject
from scopemill.proto.hooks import Hook

QUALITY = ("l0", "fvu", "delta_loss", "recovered_zero", "recovered_mean", "dead_fraction", "decoder_cosine")
OF_RUN: dict[str, State] = {"waiting": "pending", "training": "running", "finished": "completed", "stopped": "stopped", "failed": "failed"}


def id_of(sweep: str, sae: str) -> str:
    """Return a training's id, which can be a part of a URL's path."""
    return f"{sweep}:{sae.replace('/', ':')}"


@dataclass(frozen=True)
class Entry:
    """Hold one training with what it was told from."""

    training: Training
    sweep: SweepFacts
    record: SaeRecord
    facts: SaeFacts
    run: SaeProgress | None


class Trainings:
    """List the trainings of a snapshot."""

    def __init__(self, snapshot: Snapshot):
        self.snapshot = snapshot

    @cached_property
    def by_id(self) -> dict[str, Entry]:
        """Return every training of every sweep that is not deleted."""
        made = (self._entry(sweep, sae) for sweep in self.snapshot.sweeps.values() if sweep.record for sae in sweep.record.saes)
        return {entry.training.id: entry for entry in made if entry.sweep.withdrawn.get(entry.record.name) != "deleted"}

    def get(self, id: str) -> Entry:
        """Return one training; MissingObject if there is none of this id."""
        try:
            return self.by_id[id]
        except KeyError:
            raise MissingObject(f"there is no training {id!r} in this bucket: it was deleted, or its sweep was never planned") from None

    def of_sweep(self, name: str) -> list[Entry]:
        """Return a sweep's trainings in the plan's order."""
        return [entry for entry in self.by_id.values() if entry.sweep.name == name]

    def sweep(self, name: str) -> SweepFacts:
        """Return a sweep; MissingObject if there is none of this name."""
        try:
            return self.snapshot.sweeps[name]
        except KeyError:
            raise MissingObject(f"there is no sweep {name!r} in this bucket") from None

    def sae(self, path: str) -> SaeFacts:
        """Return a finished SAE, or one of a sweep; MissingObject for any other path."""
        try:
            return self.snapshot.saes[path]
        except KeyError:
            raise MissingObject(f"there is no SAE {path!r} in this bucket") from None

    def language_model(self, path: str) -> str | None:
        """Return the language model that an SAE's sweep file names.

        Returns None for an SAE that no sweep has.
        """
        for entry in self.by_id.values():
            if entry.record.root == path:
                model = (entry.sweep.config or {}).get("model")
                found = model.get("name") if isinstance(model, dict) else model
                return str(found) if found else None
        return None

    def _entry(self, sweep: SweepFacts, sae: SaeRecord) -> Entry:
        facts = self.snapshot.saes.get(sae.root, SaeFacts())
        run = sweep.progress.saes.get(sae.name) if sweep.progress else None
        state, reason = state_of(sweep, sae, facts, run)
        _, model, _, width, architecture, _ = [*sae.root.split("/"), *[""] * 6][:6]
        hook = Hook.parse(sae.inputs[0]) if sae.inputs else None
        parts = sae.name.split("/")
        training = Training(
            id=id_of(sweep.name, sae.name),
            sweep=sweep.name,
            name=sae.name,
            path=sae.root,
            state=state,
            reason=reason,
            model=model,
            inputs=list(sae.inputs),
            targets=list(sae.targets),
            layer=hook.layer if hook else None,
            site=hook.site if hook else None,
            architecture=architecture,
            width=_number(parts[1] if len(parts) > 1 else width.removeprefix("width_"), int),
            sparsity=_number(parts[3] if len(parts) > 3 else "", float),
            progress=progress_of(sae, facts, run, state),
            quality=quality_of(facts.evaluation),
            evidence=facts.evidence,
            updated=sweep.progress.written if run and sweep.progress else None,
            asked=[request.action for request in sweep.requests if sae.name in request.saes],
        )
        return Entry(training, sweep, sae, facts, run)


def state_of(sweep: SweepFacts, sae: SaeRecord, facts: SaeFacts, run: SaeProgress | None) -> tuple[State, str | None]:
    """Tell a training's state, and why it is in it where that is not plain."""
    if facts.state.finished:
        return "completed", None
    if why := sweep.withdrawn.get(sae.name):
        if sweep.runs and run and run.state == "training":
            return "running", "it is being stopped: its trainer writes a checkpoint first"
        return "stopped", f"{why} on request; retry goes on from step {facts.state.step:,}"
    if facts.halved and sweep.record and sweep.record.halving:
        return "stopped", facts.halved
    if sweep.runs:
        if run is None:
            return "pending", "its sweep is at work on something else first" if sweep.progress else "its driver is starting"
        if run.state == "interrupted":
            return "pending", f"it waits for shards that are made again: {run.reason}"
        state = OF_RUN[run.state]
        if state == "completed":
            return "running", "it writes its last checkpoint"
        return state, run.reason or None
    if run and run.state in ("failed", "interrupted"):
        return "failed", run.reason
    started = facts.state.step > 0 or (run is not None and run.step > 0)
    return ("stopped", _without_driver(sweep, facts)) if started else ("pending", _without_driver(sweep, facts))


def _without_driver(sweep: SweepFacts, facts: SaeFacts) -> str:
    if sweep.note:
        return sweep.note
    go_on = f"retry goes on from step {facts.state.step:,}" if facts.state.step else "retry starts it"
    if sweep.progress is None:
        return f"no driver is at work on sweep {sweep.name}: {go_on}"
    if sweep.progress.ended:
        return f"{sweep.progress.error or 'its driver ended before it'}: {go_on}"
    return f"the driver of sweep {sweep.name} is gone without a word: everything committed is kept, and {go_on}"


def progress_of(sae: SaeRecord, facts: SaeFacts, run: SaeProgress | None, state: State) -> Progress:
    """Tell how far a training is.

    The run at work tells it if it is further than the history in the bucket.
    """
    last = facts.last
    row: dict[str, Any] = {}
    step = sae.steps if facts.state.finished else facts.state.step
    if last:
        row = {name: getattr(last, name) for name in last.__dataclass_fields__}
    if run and state in ("running", "failed", "stopped", "pending") and run.step >= step:
        step, row = run.step, run.row or row
    speed = row.get("steps_per_second")
    left = (sae.steps - step) / speed if speed and state == "running" else None
    return Progress(
        step=step,
        steps=sae.steps,
        progress_pct=round(100.0 * step / sae.steps, 2) if sae.steps else 0.0,
        eta=left,
        loss=finite(row.get("loss")),
        l0=finite(row.get("l0")),
        fvu=finite(row.get("fvu")),
        dead=None if row.get("dead_latents") is None else int(row["dead_latents"]),
        lr=finite(row.get("learning_rate")),
        sparsity_factor=finite(row.get("sparsity_factor")),
        steps_per_second=finite(speed),
        tokens=None if row.get("tokens") is None else int(row["tokens"]),
    )


def quality_of(evaluation: Evaluation | None) -> Quality | None:
    """Return what an evaluation found."""
    if evaluation is None:
        return None
    return Quality(step=evaluation.result.step, **{name: finite(getattr(evaluation.result, name)) for name in QUALITY})


def counts_of(trainings: Iterable[Training]) -> dict[State, int]:
    """Count trainings by state."""
    counts: dict[State, int] = {"pending": 0, "running": 0, "completed": 0, "failed": 0, "stopped": 0}
    for training in trainings:
        counts[training.state] += 1
    return counts


def finite(value: Any) -> float | None:
    """Return a number that JSON can hold."""
    return float(value) if value is not None and math.isfinite(value) else None


def _number(text: str, kind: type[Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None
