"""What a sweep leaves for people: its table, plots and report, and finished SAEs copied out of the bucket."""

from datetime import UTC, datetime

import yaml

from scopemill.deploy.catalog.status import read_status
from scopemill.deploy.cost.summary import facts
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.evaluator.fidelity.results import write_table
from scopemill.evaluator.report.export import save
from scopemill.evaluator.report.fidelity_figure import fidelity_figure
from scopemill.evaluator.report.frequency_figure import frequency_figure
from scopemill.evaluator.report.page import render_report
from scopemill.evaluator.report.training_figure import training_figure
from scopemill.proto.layout import SweepLayout
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
        "fvu": fidelity_figure(results, "fvu"),
        "delta_loss": fidelity_figure(results, "delta_loss"),
        "frequency": frequency_figure(evaluations),
        "training": training_figure(histories),
    }
    for name, figure in figures.items():
        save(figure, bucket, f"{layout.plots}/{name}")
    places["plots"] = bucket.place(f"{layout.plots}/{{{','.join(figures)}}}.{{png,svg}}")
    told = facts(plan) | {"written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    html = render_report(f"Sweep {plan.config.name}", told, evaluations, histories)
    bucket.write(layout.report, html.encode())
    return places | {"report": bucket.place(layout.report)}
