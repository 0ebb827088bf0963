"""Carry out calls that need torch or Ray, in a process apart: ``python -m scopemill.deploy.studio.heavy``.

Each function of `CALLS` takes and returns what JSON can hold, and may tell notes meanwhile. Imports wait for the first call.
"""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from scopemill.proto.errors import Conflict, InputError, ScopemillError

Tell = Callable[[dict[str, Any]], None]


def estimate(tell: Tell, config: dict[str, Any], hardware: str, given: dict[str, float | None]) -> dict[str, Any]:
    """Tell what a sweep would take."""
    from scopemill.deploy.cost.estimate import cost_of, named_hardware
    from scopemill.deploy.cost.memory import peaks
    from scopemill.deploy.cost.sizes import model_size
    from scopemill.deploy.cost.summary import facts
    from scopemill.deploy.plan.planner import lay_out
    from scopemill.deploy.plan.sweep_file import parse_sweep

    accelerator = named_hardware(hardware, given)
    plan = lay_out(parse_sweep(config, "the sweep file"))
    size = model_size(plan.config.model)
    cost = cost_of(plan, size, accelerator)
    stages = [
        {"name": s.name, "tokens": s.tokens, "flops": s.flops, "kept_bytes": s.kept, "hours": s.hours, "price": s.hours * accelerator.price}
        for s in cost.stages
    ]
    hours = sum(stage.hours for stage in cost.stages)
    return {
        "sweep": plan.config.name,
        "trainings": len(plan.saes),
        "facts": facts(plan, plan.read_state()),
        "stages": stages,
        "memory": [{"process": peak.process, "bytes": peak.bytes, "parts": peak.parts} for peak in peaks(plan, size)],
        "hours": hours,
        "price": hours * accelerator.price,
        "kept_bytes": sum(stage.kept for stage in cost.stages),
        "hardware": f"{hardware}: {accelerator}",
    }


def plan(tell: Tell, config: dict[str, Any]) -> list[str]:
    """Check a sweep whole, and write its plan and its file into the bucket.

    Returns its SAEs' names.
    """
    import yaml

    from scopemill.deploy.plan.planner import plan_sweep
    from scopemill.deploy.plan.record import read_plan_of, write_plan
    from scopemill.deploy.plan.submission import write_submission
    from scopemill.deploy.plan.sweep_file import parse_sweep

    parsed = parse_sweep(config, "the sweep file")
    planned = plan_sweep(parsed)
    known = read_plan_of(planned.bucket, parsed.name)
    if known and known.digest != planned.record.digest:
        raise Conflict(f"name: there is another sweep {parsed.name} in this bucket: choose another name")
    planned.bucket.check_writable()
    file = yaml.safe_dump(parsed.model_dump(mode="json"), sort_keys=False)
    planned.bucket.write(planned.record.layout.config, file.encode())
    write_submission(planned.bucket, parsed.submission)
    write_plan(planned.bucket, planned.record)
    return [sae.name for sae in planned.saes]


def submit(tell: Tell, config: dict[str, Any], address: str, command: str, installed: bool, waiting: bool) -> None:
    """Submit a sweep's run as a job of a Ray cluster.

    If one is at work that is still ``waiting`` for the lease, it will do. One that gave the lease back ends first: its cluster would
    take no other.
    """
    from scopemill.deploy.cluster.jobs import Jobs
    from scopemill.deploy.plan.sweep_file import parse_sweep

    parsed, jobs = parse_sweep(config, "the sweep file").located(), Jobs(address)
    if jobs.is_at_work(parsed.name):
        if waiting:
            return
        jobs.wait_for_end(parsed.name)
    jobs.submit(parsed, {}, installed, command)


def ending(tell: Tell, sweep: str, address: str) -> dict[str, Any] | None:
    """Tell how a sweep's newest job ended, with its log if it failed.

    Returns None while it has not ended.
    """
    from scopemill.deploy.cluster.jobs import Jobs

    jobs = Jobs(address)
    if jobs.is_at_work(sweep):
        return None
    succeeded = jobs.succeeded(sweep)
    return {"succeeded": succeeded, "log": "" if succeeded else jobs.logs(sweep)}


def gemma_scope(tell: Tell, source: str) -> list[dict[str, Any]]:
    """List the SAEs of a Gemma Scope tree."""
    from scopemill.deploy.catalog.conversion import tree_entries

    return [dataclasses.asdict(entry) for entry in tree_entries(source)]


def import_saes(tell: Tell, source: str, bucket: str, match: str) -> list[str]:
    """Import a Gemma Scope tree's SAEs that match; tell how many are done."""
    from scopemill.deploy.catalog.conversion import import_tree
    from scopemill.deploy.progress import Onlooker, Reporter

    class Told(Onlooker):
        def progressed(self, phase: str, done: int, total: int) -> None:
            tell({"done": done, "total": total})

    return import_tree(source, bucket, match, Reporter(_silent(), Told()))


def steer(tell: Tell, model: str | None, request: dict[str, Any]) -> dict[str, Any]:
    """Continue a prompt steered and unsteered; tell each piece of text."""
    from scopemill.deploy.plan.sweep_file import parse_config
    from scopemill.evaluator.steering.steerer import SteeringRequest

    parsed = parse_config(SteeringRequest, request, "steer")
    if not parsed.configurations:
        raise InputError("configurations: there is nothing to steer by: give at least one edit")
    first = next(iter(parsed.configurations.values()))[0].sae
    told = _steerer(model or _model_of(first)).steer(
        parsed, lambda name, sample, text: tell({"name": name, "sample": sample, "text": text})
    )
    return {name: dataclasses.asdict(result) for name, result in told.items()}


def firing(tell: Tell, sae: str, text: str, model: str | None) -> list[dict[str, Any]]:
    """Return the latents that fire on a text."""
    from scopemill.evaluator.evidence.firing import firing_on

    return list(firing_on(sae, text, model))


CALLS: dict[str, Callable[..., Any]] = {
    call.__name__: call for call in (estimate, plan, submit, ending, gemma_scope, import_saes, steer, firing)
}


@cache
def _steerer(model: str) -> Any:
    from scopemill.evaluator.steering.steerer import Steerer
    from scopemill.harvester.config import named_model

    return Steerer(named_model(model))


def _model_of(sae: str) -> str:
    from scopemill.trainer.formats import read_finished

    if model := read_finished(sae).model:
        return model
    raise InputError(f"{sae} does not name its language model: give it as model")


def _silent() -> Any:
    from scopemill.deploy.console import plain_console

    return plain_console(file=open(os.devnull, "w"))  # noqa: SIM115


def _finite(value: Any) -> Any:
    """Return the same with None for every number that JSON cannot hold."""
    match value:
        case dict():
            return {str(name): _finite(one) for name, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case float() if not math.isfinite(value):
            return None
    return value


def main() -> None:
    """Answer calls until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like: answers have a stream of their own

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(_finite(answer)) + "\n")
        answers.flush()

    for line in sys.stdin:
        asked = json.loads(line)
        try:
            say({"result": CALLS[asked["call"]](lambda note: say({"note": note}), **asked["arguments"])})
        except ScopemillError as error:
            say({"error": {"kind": type(error).__name__, "sentence": str(error)}})
        except Exception as error:  # a library's, such as a GPU out of memory: the process goes on
            say({"error": {"kind": "ScopemillError", "sentence": f"{type(error).__name__}: {' '.join(str(error).split())}"}})


if __name__ == "__main__":
    main()
