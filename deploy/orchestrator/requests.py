"""Carry out on the bucket what people ask of a sweep's SAEs.

The caller holds the sweep's lease. A request's effect is written before the request is removed, and has no further effect when
written again. So a run that is killed in between carries it out once more, to the same end.
"""

from collections.abc import Collection

from scopemill.deploy.plan.record import PlanRecord, SaeRecord, read_plan_of
from scopemill.deploy.plan.requests import Request, remove_request
from scopemill.deploy.plan.withdrawn import Why, take_up, withdraw
from scopemill.proto.finished import is_finished
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket

EFFECTS: dict[str, Why] = {"stop": "stopped", "delete": "deleted"}


def carry_out(bucket: Bucket, plan: PlanRecord, request: Request, busy: Collection[str]) -> bool:
    """Carry out a request as far as possible; return True once it is done.

    SAEs that are ``busy`` are in training. An evaluation is done by the phase that evaluates, which removes the request.
    """
    named = [sae for sae in plan.saes if sae.name in request.saes]
    match request.action:
        case "stop" | "delete" as action:
            names = [sae.name for sae in named if action == "delete" or not is_finished(bucket, sae.layout)]
            withdraw(bucket, plan.name, names, EFFECTS[action])
            if any(sae.name in busy for sae in named):
                return False
            if action == "delete":
                _delete(bucket, plan, named)
        case "retry":
            take_up(bucket, plan.name, [sae.name for sae in named])
            for sae in named:
                if not is_finished(bucket, sae.layout):
                    bucket.remove(sae.layout.stopped)
        case "evaluate":
            return False
    remove_request(bucket, plan.name, request)
    return True


def _delete(bucket: Bucket, plan: PlanRecord, saes: Collection[SaeRecord]) -> None:
    """Delete SAEs' folders, but for those that another sweep names as well."""
    of_others = {sae.root for name in bucket.names("sweeps") if name != plan.name for sae in _saes_of(bucket, name)}
    for sae in saes:
        if sae.root not in of_others:
            bucket.remove(SaeLayout(sae.root).config)  # first: what is left of a broken deletion is no finished SAE
            bucket.remove_tree(sae.root)


def _saes_of(bucket: Bucket, sweep: str) -> list[SaeRecord]:
    record = read_plan_of(bucket, sweep)
    return record.saes if record else []
