"""Pass requests on to the driver at work.

Without one, carry them out here, and start a driver where they make work.
"""

import logging
from collections.abc import Collection, Sequence

from scopemill.deploy.orchestrator.requests import carry_out
from scopemill.deploy.plan.record import PlanRecord
from scopemill.deploy.plan.requests import Action, Request, remove_request, write_request
from scopemill.deploy.studio.bucket_reader import SweepFacts
from scopemill.deploy.studio.launcher import Launcher
from scopemill.deploy.studio.models.actions import Asked, AskedAll
from scopemill.deploy.studio.threads import in_thread
from scopemill.deploy.studio.trainings import Entry, Trainings
from scopemill.proto.errors import ScopemillError
from scopemill.proto.layout import LeaseLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.lease import Lease

log = logging.getLogger(__name__)


class Dispatcher:
    """Ask the drivers of one bucket."""

    def __init__(self, bucket: Bucket, launcher: Launcher):
        self._bucket, self._launcher = bucket, launcher

    async def ask(self, action: Action, entries: Sequence[Entry]) -> list[Asked]:
        """Write a request for each sweep of some trainings.

        `settle` carries it out where no driver does.
        """
        by_sweep: dict[str, list[Entry]] = {}
        for entry in entries:
            by_sweep.setdefault(entry.sweep.name, []).append(entry)
        asked = []
        for name, of_sweep in by_sweep.items():
            request = Request.new(action, tuple(entry.record.name for entry in of_sweep))
            await in_thread(write_request, self._bucket, name, request)
            asked.append(
                Asked(
                    request=request.id,
                    action=action,
                    trainings=[entry.training.id for entry in of_sweep],
                    driver=of_sweep[0].sweep.driver or (self._launcher.who if action in ("retry", "evaluate") else "this service"),
                )
            )
        return asked

    async def ask_all(self, action: Action, trainings: Trainings, ids: Collection[str]) -> AskedAll:
        """Ask the same of several trainings; ids that name none are told."""
        found = [trainings.by_id[id] for id in dict.fromkeys(ids) if id in trainings.by_id]
        return AskedAll(asked=await self.ask(action, found), missing=[id for id in ids if id not in trainings.by_id])

    async def settle(self, sweeps: Collection[SweepFacts]) -> bool:
        """Carry out the requests of sweeps that no driver is at work on.

        Returns True if there were any.
        """
        settled = False
        for sweep in sweeps:
            if sweep.requests and not sweep.runs and sweep.record:
                try:
                    settled = await self._settle(sweep, sweep.record) or settled
                except ScopemillError as error:
                    log.warning("the requests to sweep %s were not carried out: %s", sweep.name, error)
        return settled

    async def _settle(self, sweep: SweepFacts, plan: PlanRecord) -> bool:
        if not await in_thread(self._carry_out, plan, sweep.requests):
            return False  # a driver has come, or may still live: the next look tells
        actions = {request.action for request in sweep.requests}
        command = "sweep" if "retry" in actions else "evaluate" if "evaluate" in actions else None
        if command:
            await self._launcher.start(sweep.name, command)
        return True

    def _carry_out(self, plan: PlanRecord, requests: Sequence[Request]) -> bool:
        lease = Lease(self._bucket, LeaseLayout.sweep(plan.name), f"sweep {plan.name}")
        if lease.attempt():
            return False
        try:
            for request in requests:
                if not carry_out(self._bucket, plan, request, busy=()):
                    remove_request(self._bucket, plan.name, request)  # an evaluation: it is the started driver's whole work
        finally:
            lease.release()
        return True
