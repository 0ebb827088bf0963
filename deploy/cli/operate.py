"""Look after a running sweep.

The commands are ``scopemill logs``, ``stop``, ``clean``, ``keys`` and ``monitor``.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scopemill.deploy.cli.options import Address, Overrides, SweepFile, print_facts, print_line, record_of
from scopemill.proto.errors import ScopemillError, Stopped

if TYPE_CHECKING:
    from scopemill.deploy.cluster.jobs import Jobs
    from scopemill.deploy.plan.record import PlanRecord
    from scopemill.proto.storage.bucket import Bucket


def logs(
    file: SweepFile,
    address: Address,
    follow: Annotated[bool, typer.Option(help="Follow the log until the sweep ends.")] = False,
) -> None:
    """Print the log of a submitted sweep."""
    from scopemill.deploy.cluster.jobs import Jobs
    from scopemill.deploy.plan.sweep_file import load_sweep

    name, jobs = load_sweep(file).name, Jobs(address)
    if follow:
        return follow_log(jobs, name)
    sys.stdout.write(jobs.logs(name))


def stop(file: SweepFile, address: Address) -> None:
    """Stop a submitted sweep after its trainers have checkpointed; submit it again to resume."""
    from scopemill.deploy.cluster.jobs import Jobs
    from scopemill.deploy.plan.sweep_file import load_sweep

    name = load_sweep(file).name
    print_line("stopped; everything committed is kept" if Jobs(address).stop(name) else f"sweep {name} was not running")


def clean(
    file: SweepFile,
    set: Overrides = [],  # noqa: A002, B006
    dry_run: Annotated[bool, typer.Option(help="List the objects, and remove none.")] = False,
    verify: Annotated[bool, typer.Option(help="Read all that later runs need, and take back what is damaged.")] = False,
) -> None:
    """Remove what broken runs of a sweep left behind.

    Refused while a run of the sweep or of its dataset is at work: its uncommitted work would be removed too.
    """
    from scopemill.deploy.catalog.clean import clean as remove

    bucket, record = record_of(file, set)
    if dry_run:
        found, damaged = remove(bucket, record, dry_run=True), _damaged(bucket, record, verify, dry_run=True)
    else:
        from scopemill.deploy.cluster.leases import held, leases_of
        from scopemill.deploy.plan.state import SweepState

        with held(bucket, leases_of(record, SweepState.read(bucket, record), alone=True), False, print_line):
            damaged = _damaged(bucket, record, verify, dry_run=False)
            found = remove(bucket, record, dry_run=False)
    for problem in damaged:
        print_line(problem)
    if verify:
        rest = "" if dry_run or not damaged else ": run the sweep again to make them again"
        print_line(f"{len(damaged)} damaged things {'would be' if dry_run else 'were'} taken back{rest}")
    for path in found:
        print_line(path)
    print_line(f"{len(found)} objects {'would be' if dry_run else 'were'} removed")


def _damaged(bucket: "Bucket", record: "PlanRecord", verify: bool, dry_run: bool) -> list[str]:
    """Take back what is damaged, if asked to; return a sentence for each thing."""
    if not verify:
        return []
    from scopemill.deploy.catalog.verify import take_back_damaged

    return take_back_damaged(bucket, record, dry_run)


def keys(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")]) -> None:
    """Make the keys that an activation server needs beyond one machine.

    The sweep file names them as server.keys: DIR.
    """
    from scopemill.activation_server.keys import make_keys

    for path in make_keys(folder):
        print_line(str(path))


def monitor(
    port: Annotated[int, typer.Option(help="The port of Prometheus, on loopback.")] = 9090,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="A sweep's file_sd file, or http://<driver's node>:<metrics_port>/targets; without it, all sweeps of this machine.",
        ),
    ] = None,
) -> None:
    """Run Prometheus, with Scopemill's alerts, over sweeps.

    These are all sweeps of this machine, or one sweep of a cluster.
    """
    from scopemill.deploy.monitoring.prometheus import config, prometheus
    from scopemill.proto.metrics import targets_folder
    from scopemill.proto.runtime import runtime_folder

    folder = runtime_folder() / "prometheus"
    watched = targets or f"{targets_folder()}/*.json"
    if "://" not in watched:
        watched = str(Path(watched).absolute())
    with suppress(KeyboardInterrupt), prometheus(folder, config(watched), port) as (url, process):
        print_facts({"Prometheus": url, "alerts": f"{url}/alerts", "sweeps": watched, "kept in": str(folder), "Ctrl-C": "ends it"})
        process.wait()
        raise ScopemillError(f"prometheus ended by itself; {folder}/prometheus.log says why")


def follow_log(jobs: "Jobs", sweep: str) -> None:
    """Print a sweep's log until it ends. Ctrl-C ends the printing alone."""
    try:
        jobs.follow(sweep, sys.stdout.write)
    except KeyboardInterrupt as interrupt:
        raise Stopped(f"sweep {sweep} still runs; scopemill logs shows its log, and scopemill stop ends it") from interrupt
