"""Write a sweep's results for people: its table, plots and report."""

from datetime import UTC, datetime

import yaml

from scopemill.activation_server.mixing import measure_mixing
from scopemill.deploy.catalog.absorption import absorption_rows, read_measured
from scopemill.deploy.catalog.finetuned import finetuned_rows
from scopemill.deploy.catalog.published import places_of
from scopemill.deploy.catalog.status import SweepStatus, read_status
from scopemill.deploy.cost.summary import facts
from scopemill.deploy.plan.finetunings import finetune_jobs, read_finetuned
from scopemill.deploy.plan.side_by_side import side_by_side
from scopemill.deploy.plan.state import SweepState
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.evaluator.evidence.reader import own_page
from scopemill.evaluator.fidelity.results import write_table
from scopemill.evaluator.probes.table import write_probes
from scopemill.evaluator.report.export import save
from scopemill.evaluator.report.fidelity_figure import fidelity_figure
from scopemill.evaluator.report.frequency_figure import frequency_figure
from scopemill.evaluator.report.page import render_report
from scopemill.evaluator.report.training_figure import training_figure
from scopemill.proto.errors import StorageError
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
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
    bucket.remove(layout.report)  # it is written last: where it is, all of these fit together
    given = plan.given.submission
    meant = f"# As the sweep's newest run was given it. Relative paths are meant from {given.folder}\n"
    bucket.write(layout.config, (meant + yaml.safe_dump(given.sweep, sort_keys=False)).encode())
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
    summary = facts(plan, now) | _mixing(plan, now) | {"written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    finetuned = finetuned_rows(read_finetuned(bucket, finetune_jobs(bucket, plan.record, now)))
    finished = [sae.root for sae in plan.record.saes if now.saes[sae.name].finished]
    absorbed = absorption_rows(read_measured(bucket, finished))
    pages = _pages(bucket, finished) if plan.config.evidence and plan.config.evidence.page else {}
    page = render_report(f"Sweep {plan.config.name}", summary, evaluations, histories, finetuned, absorbed, pages)
    bucket.write(layout.report, page.encode())
    return places_of(bucket, plan.config.name)


def _pages(bucket: Bucket, saes: list[str]) -> dict[str, str]:
    """Return where each SAE's page of latents lies, from the report's folder, by the SAE's folder."""
    up = "../" * (SweepLayout("any").report.count("/"))
    return {sae: up + index for sae, index in zip(saes, side_by_side(lambda sae: own_page(bucket, sae), saes), strict=True) if index}


def _mixing(plan: SweepPlan, state: SweepState) -> dict[str, str]:
    """Return how well the batches of each pass are mixed, where its shards are there."""
    found = []
    for part, now in zip(plan.passes, state.passes, strict=True):
        if part.saes and now.manifest and now.harvested:
            try:
                measured = measure_mixing(plan.bucket, now.manifest, part.stream(part.saes[0].hooks))
            except StorageError as error:
                found.append(f"not measured: {error}")
            else:
                found += [measured.sentence()] if measured else []
    return {"mixing": "\n".join(found)} if found else {}


def _histories(plan: SweepPlan, state: SweepState) -> dict[str, list[Row]]:
    """Read the histories of all SAEs that have one, by name."""
    saes = [sae for sae in plan.saes if state.saes[sae.name].history]
    histories = side_by_side(lambda sae: History.load(plan.bucket, sae.layout.history, sae.config.steps).rows, saes)
    return {sae.name: rows for sae, rows in zip(saes, histories, strict=True) if rows}
