"""Do a sweep's work.

The commands are ``scopemill sweep``, its phases, ``plan``, ``submit`` and ``demo``.
"""

import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from scopemill.deploy.cli.operate import follow_log
from scopemill.deploy.cli.options import Address, Overrides, SweepFile, Wait, console, plan_of, print_facts, print_line
from scopemill.proto.errors import PartlyFailed, Stopped

if TYPE_CHECKING:
    from scopemill.deploy.orchestrator.driver import SweepDriver
    from scopemill.deploy.plan.state import SweepState
    from scopemill.deploy.plan.sweep_plan import SweepPlan
    from scopemill.deploy.progress import Reporter

PHASES = ("harvest", "train", "finetune", "evaluate", "evidence")


def sweep(
    file: SweepFile,
    set: Overrides = [],  # noqa: A002, B006
    dry_run: Annotated[bool, typer.Option(help="Describe the sweep, and start nothing.")] = False,
    wait: Wait = False,
) -> None:
    """Harvest, train, evaluate and report; committed work is not done again."""
    if dry_run:
        from scopemill.deploy.cost.summary import facts

        planned = plan_of(file, set)
        return print_facts(facts(planned, planned.read_state()))
    _drive(file, set, PHASES, wait)


def plan(
    file: SweepFile,
    set: Overrides = [],  # noqa: A002, B006
    hardware: Annotated[str, typer.Option(help="The accelerator to calculate with: l4, l40s, a100, h100 or h200.")] = "h100",
    price: Annotated[float | None, typer.Option(help="Its price, in US dollars an hour.")] = None,
    utilisation: Annotated[float | None, typer.Option(help="The share of its peak that is reached, from 0 to 1.")] = None,
    bfloat16_tflops: Annotated[float | None, typer.Option(help="Its peak in bfloat16, in TFLOP/s.")] = None,
    float32_tflops: Annotated[float | None, typer.Option(help="Its peak in float32, in TFLOP/s.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Its memory bandwidth, in TB/s.")] = None,
) -> None:
    """Check a sweep file, and show what the sweep would do and cost.

    Starts nothing and needs no weights.
    """
    from scopemill.deploy.cost.estimate import cost_of, cost_tables, named_hardware

    given = {"price": price, "utilisation": utilisation, "bandwidth": bandwidth}
    accelerator = named_hardware(hardware, given | {"bfloat16_tflops": bfloat16_tflops, "float32_tflops": float32_tflops})
    planned = plan_of(file, set)
    from scopemill.deploy.cost.memory import memory_table, peaks
    from scopemill.deploy.cost.sizes import model_size
    from scopemill.deploy.cost.summary import facts

    print_facts(facts(planned, planned.read_state()) | {"hardware": f"{hardware}: {accelerator}"})
    size = model_size(planned.config.model)
    console.print("", cost_tables(cost_of(planned, size, accelerator), accelerator), "", memory_table(peaks(planned, size)), sep="\n")


def harvest(file: SweepFile, set: Overrides = [], wait: Wait = False) -> None:  # noqa: A002, B006
    """Harvest the activation dataset of a sweep, and stop there."""
    _drive(file, set, ("harvest",), wait)


def evaluate(file: SweepFile, set: Overrides = [], wait: Wait = False) -> None:  # noqa: A002, B006
    """Evaluate a sweep's committed checkpoints, and report."""
    _drive(file, set, ("evaluate",), wait)


def submit(
    file: SweepFile,
    address: Address,
    set: Overrides = [],  # noqa: A002, B006
    env: Annotated[
        list[str], typer.Option(metavar="NAME", help="An environment variable to pass on; no credentials. May be repeated.")
    ] = [],  # noqa: B006
    installed: Annotated[bool, typer.Option(help="The cluster's image has Scopemill installed: send the sweep file alone.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow the log until the sweep ends.")] = True,
) -> None:
    """Run a sweep as a job of a Ray cluster; submitted again, it resumes."""
    from scopemill.deploy.cluster.jobs import Jobs, forwarded
    from scopemill.deploy.plan.sweep_file import load_sweep

    config, jobs = load_sweep(file, set).located(), Jobs(address)
    jobs.submit(config, forwarded(env), installed)
    print_line(f"submitted; scopemill logs and stop take {file} --address {address}")
    if wait:
        follow_log(jobs, config.name)


def demo(set: Overrides = []) -> None:  # noqa: A002, B006
    """Run a whole sweep of a small language model on this machine.

    The package carries the model; the text is Python's own library.
    """
    from scopemill.deploy.demo.run import write_sweep

    _drive(write_sweep(), set, PHASES)


def heed_signals() -> None:
    """Make `ray job stop` and `kill` drain as Ctrl-C does.

    A shell's background jobs start with Ctrl-C's signal ignored.
    """
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)


def _drive(file: str, overrides: list[str], phases: tuple[str, ...], wait: bool = False) -> None:
    """Record the plan, then carry out phases, on a cluster. If nothing is left to do, only look: nothing is written."""
    from scopemill.deploy.progress import Reporter

    reporter = Reporter(console)
    if _is_done(file, overrides, phases, reporter):
        return
    plan = plan_of(file, overrides)
    from scopemill.deploy.cluster.leases import check_no_overlap, held, leases_of
    from scopemill.deploy.orchestrator.desk import Desk
    from scopemill.deploy.orchestrator.driver import SweepDriver
    from scopemill.deploy.plan.record import write_plan
    from scopemill.deploy.plan.submission import write_submission

    desk = Desk(plan.bucket, plan.record)
    reporter = Reporter(console, desk)
    driver = SweepDriver(plan, reporter, desk)
    reporter.say(f"sweep {plan.config.name}: {len(plan.saes)} SAEs at {len(plan.hooks)} hooks")
    try:
        with ExitStack() as stack:
            stack.enter_context(held(plan.bucket, leases_of(plan.record, plan.read_state()), wait, reporter.say))
            write_plan(plan.bucket, plan.record)
            write_submission(plan.bucket, plan.given.submission)
            stack.enter_context(desk)
            state = plan.read_state()
            check_no_overlap(plan.bucket, plan.record, state.unfinished if "train" in phases else ())
            failures = _carry_on(driver, phases, state, reporter)
            while driver.is_asked_again(phases):
                failures = _carry_on(driver, phases, plan.read_state(), reporter)
            if failures:
                raise PartlyFailed("\n".join(failures))
    except KeyboardInterrupt as interrupt:
        command = "scopemill " + " ".join(sys.argv[1:])
        raise Stopped(f"stopped; everything committed is kept. To continue: {command}") from interrupt


def _carry_on(driver: "SweepDriver", phases: tuple[str, ...], state: "SweepState", reporter: "Reporter") -> list[str]:
    """Carry out phases on a cluster and report; return the sentences of those that failed in part.

    A retry that comes after the training goes first: the phases after it end early, and go on in the next round.
    """
    from scopemill.deploy.cluster.ray_cluster import cluster

    failures: list[str] = []
    with ExitStack() as stack:
        if driver.has_work(phases, state):
            stack.enter_context(cluster())
            heed_signals()  # Ray has just replaced these handlers by its own
            driver.check_nodes(phases, state)
            driver.check_room(phases, state)
            reporter.say(f"metrics are listed in {stack.enter_context(driver.targets).places}")
        for number, phase in enumerate(phases):
            driver.desk.retries = "now" if "train" in phases[number:] else "later" if "train" in phases else "left"
            if driver.desk.awaits_retry:
                break
            state = driver.plan.read_state() if driver.desk.carry_out() else state
            try:
                state = getattr(driver, phase)(state)
            except PartlyFailed as error:  # what is whole is evaluated and reported all the same
                failures.append(str(error))
                state = driver.plan.read_state()
            if phase == "evaluate" and not driver.desk.awaits_retry:
                driver.desk.evaluated()
        if "evaluate" in phases:
            _report(driver.plan, state, reporter)
    return failures


def _is_done(file: str, overrides: list[str], phases: tuple[str, ...], reporter: "Reporter") -> bool:
    """Return True, after showing the results, if the bucket says that these phases are done: without model, corpus or a writable bucket."""
    from scopemill.deploy.plan.record import read_plan
    from scopemill.deploy.plan.state import SweepState
    from scopemill.deploy.plan.sweep_file import load_sweep
    from scopemill.deploy.plan.work import Work
    from scopemill.proto.storage.bucket import Bucket

    config = load_sweep(file, overrides)
    bucket = Bucket(config.located().bucket)
    record = read_plan(bucket, config)
    if record is None:
        return False
    state = SweepState.read(bucket, record)
    if Work(bucket, record, state, config.evaluation.checkpoints == "all").left(phase for phase in phases if phase != "evidence"):
        return False
    if "evidence" in phases and config.evidence:
        from scopemill.deploy.orchestrator.evidence import evidence_to_make

        if evidence_to_make(bucket, record, state, config.evidence, config.model.dtype):
            return False
    if "evaluate" in phases:
        from scopemill.deploy.catalog.published import is_published, places_of
        from scopemill.deploy.catalog.status import read_status, status_table

        status = read_status(bucket, record, state)
        if not is_published(bucket, record.name, status):
            return False
        reporter.say(f"sweep {record.name}: all is done already")
        console.print(status_table(status))
        print_facts(places_of(bucket, record.name))
    else:
        reporter.say(f"sweep {record.name}: {' and '.join(phases)} is done already")
    return True


def _report(plan: "SweepPlan", state: "SweepState", reporter: "Reporter") -> None:
    from scopemill.deploy.catalog.finetuned import finetuned_table
    from scopemill.deploy.catalog.publish import publish
    from scopemill.deploy.catalog.status import read_status, status_table
    from scopemill.deploy.plan.finetunings import finetune_jobs, read_finetuned

    reporter.say("writing the table, plots and report")
    status = read_status(plan.bucket, plan.record, state)
    places = publish(plan, state, status)
    console.print(status_table(status))
    if records := read_finetuned(plan.bucket, finetune_jobs(plan.bucket, plan.record, state)):
        console.print("", finetuned_table(records), sep="\n")
    print_facts(places)
