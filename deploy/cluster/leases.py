"""Hold the leases of a sweep.

So two runs that would disturb each other learn of each other by name.
"""

import _thread
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from scopemill.deploy.plan.record import PlanRecord, read_plan_of
from scopemill.deploy.plan.state import SweepState
from scopemill.proto.errors import Conflict
from scopemill.proto.layout import LeaseLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.heartbeat import STALE_SECONDS
from scopemill.proto.storage.lease import Lease, Rival

LOOK_SECONDS = 1.0


@dataclass(frozen=True, order=True)
class Wanted:
    """Describe a lease that a run needs.

    Shared holders go together, an exclusive one is alone.
    """

    root: str
    what: str
    shared: bool = False


def leases_of(record: PlanRecord, state: SweepState, alone: bool = False) -> list[Wanted]:
    """Return the leases of a run: its sweep's, and one for each of its datasets.

    A run that deletes shards needs its datasets for itself, as does one that is to be ``alone``. Others share them.
    """
    wanted = [Wanted(LeaseLayout.sweep(record.name), f"sweep {record.name}")]
    for part, now in zip(record.passes, state.passes, strict=True):
        deletes = record.rolling or record.sheds or now.rolling
        wanted.append(Wanted(LeaseLayout.dataset(part.dataset), f"dataset {part.dataset}", shared=not (deletes or alone)))
    return sorted(wanted)  # everybody takes leases in the same order, so no two runs wait for each other


@contextmanager
def held(bucket: Bucket, wanted: Iterable[Wanted], wait: bool, say: Callable[[str], object]) -> Iterator[None]:
    """Hold leases for the length of the block.

    If another run holds one, Conflict names it, or with ``wait`` the block begins when that run has ended. A run that does not show
    whether it lives is watched until its heartbeat goes on or is stale. If a lease is lost, the block is interrupted as by Ctrl-C and
    ends with Conflict.
    """
    with ExitStack() as stack:
        for one in wanted:
            lease = Lease(bucket, one.root, one.what, one.shared, on_lost=_thread.interrupt_main)
            _take(lease, wait, say)
            stack.enter_context(lease)
        yield


def check_no_overlap(bucket: Bucket, record: PlanRecord, unfinished: Iterable[str]) -> None:
    """Raise Conflict if another sweep that runs now trains one of these SAEs.

    Two sweeps may describe one SAE, and each finds it finished once the other has trained it. Called while this sweep's lease is held and
    its record written: of two sweeps that start at once, at least one sees the other.
    """
    names = set(unfinished)
    mine = {sae.root: sae.name for sae in record.saes if sae.name in names}
    for other in bucket.names(LeaseLayout.sweeps) if mine else []:
        theirs = read_plan_of(bucket, other) if other != record.name else None
        shared = [mine[sae.root] for sae in theirs.saes if sae.root in mine] if theirs else []
        if shared and (rival := _settled(Lease(bucket, LeaseLayout.sweep(other), f"sweep {other}"))):
            raise Conflict(
                f"{len(shared)} SAEs of this sweep, such as {shared[0]}, belong to sweep {other} too, which is run by {rival}: run this "
                "sweep after that one, which leaves them finished, or leave them out of one of the two"
            )


def _settled(lease: Lease) -> Rival | None:
    """Return who has a lease, once it is known whether that run lives."""
    while (rival := lease.rival()) and rival.life == "unknown":
        time.sleep(LOOK_SECONDS)
    return rival


def _take(lease: Lease, wait: bool, say: Callable[[str], object]) -> None:
    told: Rival | None = None
    while rival := lease.attempt():
        if rival.life == "alive" and not wait:
            raise Conflict(f"{lease.what} is in use by {rival}: stop that run first, or give --wait to begin when it has ended")
        if told != rival:
            told = rival
            until = "it has ended" if rival.life == "alive" else f"its heartbeat goes on, or is {STALE_SECONDS:.0f} s old"
            say(f"{lease.what} is in use by {rival}: waiting until {until}")
        time.sleep(LOOK_SECONDS)
