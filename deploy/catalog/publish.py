"""What a sweep leaves for people: its table, plots and report, and finished SAEs copied out of the bucket."""

import json
from datetime import UTC, datetime

import yaml

from scopemill.deploy.catalog.listing import finished_folders
from scopemill.deploy.catalog.status import read_status
from scopemill.deploy.cost.summary import facts
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.evaluator.fidelity.results import Evaluation, write_table
from scopemill.evaluator.report import figures as curves
from scopemill.evaluator.report.page import render_report
from scopemill.proto.errors import InputError
from scopemill.proto.layout import SaeLayout, SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import read_finished, write_finished
from scopemill.trainer.formats.gemma_scope_paths import GENERATION_1
from scopemill.trainer.training.history import History


def publish(plan: SweepPlan) -> dict[str, str]:
    """Write results, plots and report of what is evaluated so far; returns their places by name."""
    layout, bucket = SweepLayout(plan.config.name), plan.bucket
    status = read_status(plan)
    evaluations = [e for sae in status.saes for e in sae.evaluations]
    results = [e.result for e in evaluations]
    histories = {sae.name: rows for sae in plan.saes if (rows := History.load(bucket, sae.layout.history, sae.config.steps).rows)}
    bucket.write(layout.config, yaml.safe_dump(plan.config.model_dump(mode="json"), sort_keys=False).encode())
    write_table(bucket, layout, results)
    places = {"results": bucket.place(layout.results), "csv": bucket.place(layout.results_csv)}
    figures = {
        "fvu": curves.fidelity_figure(results, "fvu"),
        "delta_loss": curves.fidelity_figure(results, "delta_loss"),
        "frequency": curves.frequency_figure(evaluations),
        "training": curves.training_figure(histories),
    }
    for name, figure in figures.items():
        curves.save(figure, bucket, f"{layout.plots}/{name}")
    places["plots"] = bucket.place(f"{layout.plots}/{{{','.join(figures)}}}.{{png,svg}}")
    told = facts(plan) | {"written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    html = render_report(f"Sweep {plan.config.name}", told, evaluations, histories)
    bucket.write(layout.report, html.encode())
    return places | {"report": bucket.place(layout.report)}


def pull(source: str, destination: str, pattern: str = "*", word: str = "saelens") -> list[str]:
    """Copy finished SAEs whose folder below ``saes/`` matches a pattern, in a format; returns their folders at the destination.

    SAELens' folders are copied as they are, with what was measured; what lies there already is not written again. InputError if
    nothing matches, or if the format cannot hold one.
    """
    bucket, target = Bucket(source), Bucket(destination)
    chosen = finished_folders(bucket, pattern)
    target.check_writable()
    if word == "saelens":
        return [_copied(bucket, SaeLayout(folder), target) for folder in chosen]
    if word == "gemma-scope":
        return _converted(bucket, chosen, target)
    raise InputError(f"format {word!r} is not pulled: there are saelens and gemma-scope")


def _copied(bucket: Bucket, layout: SaeLayout, target: Bucket) -> str:
    for path in (layout.weights, layout.metrics, layout.provenance, layout.history, layout.config):  # cfg.json last: then it is whole
        if bucket.exists(path):
            data = bucket.read(path)
            copy = path.removeprefix("saes/")
            if not target.exists(copy) or target.read(copy) != data:
                target.write(copy, data)
    return layout.root.removeprefix("saes/")


def _converted(bucket: Bucket, folders: list[str], target: Bucket) -> list[str]:
    """Gemma Scope's paths are named by L0, so each SAE has to have been measured, and two of one hook may not have the same."""
    l0s = [_l0(bucket, SaeLayout(folder)) for folder in folders]
    paths: dict[str, str] = {}
    for folder, l0 in zip(folders, l0s, strict=True):
        finished = read_finished(bucket.place(folder))
        path = GENERATION_1.path_of(finished, l0)
        if path in paths:
            raise InputError(f"{paths[path]} and {folder} would both go to {path}: choose one with --match")
        write_finished(target.place(path), "gemma-scope", finished)
        paths[path] = folder
    return list(paths)


def _l0(bucket: Bucket, layout: SaeLayout) -> str:
    """The L0 that was measured, or that an imported SAE came with."""
    if bucket.exists(layout.metrics):
        return str(round(Evaluation.read(bucket, layout.metrics).result.l0))
    l0 = json.loads(bucket.read(layout.config)).get("metadata", {}).get("l0")
    if l0 is None:
        raise InputError(f"{bucket.place(layout.root)} has no metrics.json: evaluate it first, Gemma Scope's paths are named by L0")
    return str(l0)
