"""Write a sweep's results for people: its table, plots and report."""

from datetime import UTC, datetime

import yaml

from scopemill.deploy.catalog.status import SweepStatus, read_status
from scopemill.deploy.cost.summary import facts
from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.evaluator.fidelity.results import write_table
from scopemill.evaluator.probes.table import write_probes
from scopemill.evaluator.report.export import save
from scopemill.evaluator.report.fidelity_figure import fidelity_figure
from scopemill.evaluator.report.frequency_figure import frequency_figure
from scopemill.evaluator.report.page import render_report
from scopemill.evaluator.report.training_figure import training_figure
from scopemill.proto.layout import SweepLayout
from scopemill.trainer.training.history import History, Row


def publish(plan: SweepPlan, state: SweepState | None = None, status: SweepStatus | None = None) -> dict[str, str]:
    """Write the table, plots and report of all evaluations so far.

    Returns the places of these by name. Reads the bucket for the state and the status unless they are given.
    """
    layout, bucket = SweepLayout(plan.config.name), plan.bucket
    now = state or plan.read_state()
    evaluations = [e for sae in (status or read_status(bucket, plan.record, now)).saes for e in sae.evaluations]
    results = [e.result for e in evaluations]
    histories = _histories(plan, now)
    bucket.write(layout.config, yaml.safe_dump(plan.config.model_dump(mode="json"), sort_keys=False).encode())
    write_table(bucket, layout, results)
    if plan.config.evaluation.probes:
        write_probes(bucket, layout, evaluations)
    plots = {
        "fvu": fidelity_figure(results, "fvu"),
        "delta_loss": fidelity_figure(results, "delta_loss"),
        "frequency": frequency_figure(evaluations),
        "training": training_figure(histories),
    }
    for name, figure in plots.items():
        save(figure, bucket, f"{layout.plots}/{name}")
    summary = facts(plan, now) | {"written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    bucket.write(layout.report, render_report(f"Sweep {plan.config.name}", summary, evaluations, histories).encode())
    return {
        "results": bucket.place(layout.results),
        "csv": bucket.place(layout.results_csv),
        **({"probes": bucket.place(layout.probes)} if plan.config.evaluation.probes else {}),
        "plots": bucket.place(f"{layout.plots}/{{{','.join(plots)}}}.{{png,svg}}"),
        "report": bucket.place(layout.report),
    }


def _histories(plan: SweepPlan, state: SweepState) -> dict[str, list[Row]]:
    """Read the histories of all SAEs that have one, by name."""
    saes = [sae for sae in plan.saes if state.saes[sae.name].history]
    histories = side_by_side(lambda sae: History.load(plan.bucket, sae.layout.history, sae.config.steps).rows, saes)
    return {sae.name: rows for sae, rows in zip(saes, histories, strict=True) if rows}
