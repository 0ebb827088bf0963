"""Tell where a sweep's results lie, and whether they are up to date."""

import csv
import io

from scopemill.deploy.catalog.status import SweepStatus
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket


def places_of(bucket: Bucket, sweep: str) -> dict[str, str]:
    """Return the places of a sweep's results by name."""
    layout = SweepLayout(sweep)
    return {
        "results": bucket.place(layout.results),
        "csv": bucket.place(layout.results_csv),
        **({"probes": bucket.place(layout.probes)} if bucket.exists(layout.probes) else {}),
        "plots": bucket.place(f"{layout.plots}/{{fvu,delta_loss,frequency,training}}.{{png,svg}}"),
        "report": bucket.place(layout.report),
    }


def is_published(bucket: Bucket, sweep: str, status: SweepStatus) -> bool:
    """Return True if the table, plots and report show just the evaluations of this status."""
    layout = SweepLayout(sweep)
    if not bucket.exists(layout.report) or not bucket.exists(layout.results_csv):
        return False
    rows = csv.DictReader(io.StringIO(bucket.read(layout.results_csv).decode()))
    return {row.get("path") for row in rows} == {evaluation.result.path for sae in status.saes for evaluation in sae.evaluations}
