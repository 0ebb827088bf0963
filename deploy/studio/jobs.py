"""Run long work of a helper, and tell open pages how far it is."""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from scopemill.deploy.studio.hub import Hub
from scopemill.deploy.studio.models.jobs import Job
from scopemill.proto.errors import MissingObject, ScopemillError

KEPT = 64  # ended jobs, whose results can still be read
Work = Callable[[Callable[[dict[str, Any]], None]], Awaitable[Any]]


class JobList:
    """Hold the jobs of one service; it belongs to the event loop's thread."""

    def __init__(self, hub: Hub):
        self._hub = hub
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, kind: Literal["import", "steer"], command: str, work: Work) -> Job:
        """Start a job and return it.

        Messages come on the channel ``job/<id>``: progress, text, completed or failed.
        """
        job = Job(id=f"{int(time.time())}-{uuid.uuid4().hex[:8]}", kind=kind, state="running", done=0, total=None, reason=None, result=None,
                  command=command)  # fmt: skip
        self._jobs[job.id] = job
        while len(self._jobs) > KEPT:
            self._jobs.popitem(last=False)
        task = asyncio.create_task(self._run(job, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def get(self, id: str) -> Job:
        """Return a job; MissingObject if there is none of this id."""
        try:
            return self._jobs[id]
        except KeyError:
            raise MissingObject(f"there is no job {id!r}: the service was started again since, so ask once more") from None

    def cancel(self) -> None:
        """End all jobs."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, job: Job, work: Work) -> None:
        channel = f"job/{job.id}"

        def note(told: dict[str, Any]) -> None:
            if "done" in told:
                job.done, job.total = told["done"], told["total"]
                self._hub.send(channel, "progress", told)
            else:
                self._hub.send(channel, "text", told)

        try:
            job.result, job.state = await work(note), "completed"
        except ScopemillError as error:
            job.reason, job.state = str(error), "failed"
        self._hub.send(channel, job.state, job.model_dump())
