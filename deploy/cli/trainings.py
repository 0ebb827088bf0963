"""Stop, retry, delete or evaluate single trainings of a bucket: the command ``scopemill trainings``."""

from typing import TYPE_CHECKING, Annotated

import typer

from scopemill.deploy.cli.options import BucketUrl, print_line
from scopemill.proto.errors import InputError

if TYPE_CHECKING:
    from scopemill.deploy.plan.record import PlanRecord
    from scopemill.deploy.plan.requests import Request
    from scopemill.proto.storage.bucket import Bucket

GOES_ON = {"retry": "sweep", "evaluate": "evaluate"}  # the command that does the work that a request makes


def trainings(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="stop, retry, delete or evaluate.")],
    bucket: BucketUrl,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Trainings, as <sweep>:<name>; the studio shows and copies them.")],
) -> None:
    """Ask the drivers of single trainings to stop, retry, delete or evaluate them.

    Where no driver is at work, it is done at once, and the command is printed that goes on from there.
    """
    from scopemill.deploy.plan.requests import ACTIONS, Request, write_request
    from scopemill.proto.storage.bucket import Bucket

    known = next((one for one in ACTIONS if one == action), None)
    if known is None:
        raise InputError(f"{action!r} cannot be done to trainings: choose from {', '.join(ACTIONS)}")
    place = Bucket(bucket)
    for plan, names in _chosen(place, ids):
        request = Request.new(known, tuple(names))
        write_request(place, plan.name, request)
        print_line(f"{plan.name}: {action} of {len(names)}: {_settled(place, plan, request)}")


def _chosen(bucket: "Bucket", ids: list[str]) -> list[tuple["PlanRecord", list[str]]]:
    """Return the sweeps of some trainings with the names of their SAEs; InputError for an id that names none."""
    from scopemill.deploy.plan.record import read_plan_of

    by_sweep: dict[str, list[str]] = {}
    for id in dict.fromkeys(ids):
        sweep, separator, name = id.partition(":")
        if not separator or not name:
            raise InputError(f"{id!r} is no training's id: it has to be <sweep>:<name>, such as demo:2.resid_post:1024:jumprelu:0.001")
        by_sweep.setdefault(sweep, []).append(name.replace(":", "/"))
    found = []
    for sweep, names in by_sweep.items():
        plan = read_plan_of(bucket, sweep)
        if missing := set(names) - {sae.name for sae in plan.saes} if plan else names:
            raise InputError(
                f"bucket {bucket.url}: sweep {sweep} has no training {sorted(missing)[0]}: scopemill ls and the studio list them"
            )
        found.append((plan, names))
    return found  # type: ignore[return-value]


def _settled(bucket: "Bucket", plan: "PlanRecord", request: "Request") -> str:
    """Carry a request out if no driver is at work, and tell who does it."""
    from scopemill.deploy.orchestrator.requests import carry_out
    from scopemill.deploy.plan.requests import remove_request
    from scopemill.proto.layout import LeaseLayout
    from scopemill.proto.storage.lease import Lease

    lease = Lease(bucket, LeaseLayout.sweep(plan.name), f"sweep {plan.name}")
    if rival := lease.attempt():
        return f"asked its driver, {rival}"
    try:
        if not carry_out(bucket, plan, request, busy=()):
            remove_request(bucket, plan.name, request)
    finally:
        lease.release()
    command = GOES_ON.get(request.action)
    return f"no driver is at work; go on with scopemill {command} {bucket.place(plan.layout.config)}" if command else "done"
