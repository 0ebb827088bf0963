"""Give a training's measured metrics by name."""

from dataclasses import asdict, fields
from typing import Any

from scopemill.deploy.studio.models.actions import Evaluated
from scopemill.deploy.studio.trainings import Entry, finite
from scopemill.evaluator.fidelity.results import Result
from scopemill.proto.errors import InputError

COLUMNS = tuple(field.name for field in fields(Result) if field.type in (float, float | None))
PROBES, HISTOGRAM = "probes", "histogram"  # scores on labelled text; latents by how often they fire


def measured(entry: Entry, names: list[str]) -> Evaluated:
    """Return the metrics that a training's newest checkpoint has.

    InputError for names that no evaluation gives.
    """
    known = (*COLUMNS, PROBES, HISTOGRAM)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"metrics {', '.join(unknown)}: an evaluation has no such metric: choose from {', '.join(known)}")
    asks_probes = bool(((entry.sweep.config or {}).get("evaluation") or {}).get("probes"))
    if PROBES in names and not asks_probes:
        raise InputError("metrics probes: the sweep file asks for no probes: add evaluation.probes to it, and evaluate again")
    newest = entry.facts.state.step
    if not newest:
        raise InputError(f"{entry.training.name} has no checkpoint yet: wait for its first one, or retry it")
    evaluation = entry.facts.evaluation
    if evaluation is None or evaluation.result.step < newest:
        return Evaluated(id=entry.training.id, step=None, cached=False, metrics={}, request=None)
    chosen = names or [*COLUMNS, HISTOGRAM, *([PROBES] if asks_probes else [])]
    values: dict[str, Any] = {name: finite(getattr(evaluation.result, name)) for name in chosen if name in COLUMNS}
    if HISTOGRAM in chosen:
        values[HISTOGRAM] = asdict(evaluation.histogram)
    if PROBES in chosen:
        values[PROBES] = [asdict(score) for score in evaluation.probes]
    cached = PROBES not in chosen or bool(evaluation.probes)
    return Evaluated(id=entry.training.id, step=newest, cached=cached, metrics=values, request=None)
