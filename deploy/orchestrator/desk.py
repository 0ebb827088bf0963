"""Write a run's progress to the bucket, and read there what people ask of it.

So a sweep can be followed and directed by everybody who reaches the bucket, wherever the run is, and no port is opened.
"""

import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Literal

from scopemill.deploy.orchestrator.requests import carry_out
from scopemill.deploy.plan.progress import MOST_LINES, WRITE_SECONDS, SaeProgress, SweepProgress, write_progress
from scopemill.deploy.plan.record import PlanRecord
from scopemill.deploy.plan.requests import Request, read_requests, remove_request
from scopemill.deploy.progress import Onlooker
from scopemill.proto.errors import ScopemillError, Stopped, StorageError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.training.history import Row

log = logging.getLogger(__name__)
Retries = Literal["now", "later", "left"]  # carried out now; after the phase at work; or by the next run, since this one trains nothing


class Desk(Onlooker):
    """Write progress and read requests every `WRITE_SECONDS`, in a thread.

    It lasts for the length of a ``with``; outside of it nothing is written and no request comes. A bucket that does not answer
    holds up neither training nor the run: what was not written is written with the next progress.
    """

    def __init__(self, bucket: Bucket, plan: PlanRecord):
        self._bucket, self._plan = bucket, plan
        now = time.time()
        self._progress = SweepProgress(sweep=plan.name, started=now, written=now)
        self._lock, self._ending = threading.Lock(), threading.Event()
        self._written: SweepProgress | None = None
        self._requests: list[Request] = []
        self.retries: Retries = "now"
        self._done: set[str] = set()  # ids: a listing may be older than what it lists
        self._thread = threading.Thread(target=self._keep_in_touch, daemon=True, name="desk")

    def __enter__(self) -> "Desk":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join()
        ended = {"ended": True, "error": _sentence(error)}
        with self._lock:
            self._progress = self._progress.model_copy(update=ended)
        self._write()

    def said(self, text: str) -> None:
        """Keep a line of the log."""
        with self._lock:
            self._progress = self._progress.model_copy(update={"says": [*self._progress.says, text][-MOST_LINES:]})

    def progressed(self, phase: str, done: int, total: int) -> None:
        """Note how far a phase is."""
        with self._lock:
            self._progress = self._progress.model_copy(update={"phase": phase, "done": done, "total": total})

    def saes(self, saes: Mapping[str, SaeProgress]) -> None:
        """Note how far SAEs are; others stay as they were noted."""
        with self._lock:
            self._progress = self._progress.model_copy(update={"saes": self._progress.saes | dict(saes)})

    @property
    def requests(self) -> list[Request]:
        """Return the requests that are not carried out yet, the oldest first."""
        return list(self._requests)

    @property
    def awaits_retry(self) -> bool:
        """Return True if this run has to end its present phase for a retry."""
        return self.retries == "later" and any(request.action == "retry" for request in self.requests)

    def carry_out(self, busy: Collection[str] = ()) -> list[Request]:
        """Carry out the requests that can be now, and return those that are done.

        SAEs that are ``busy`` are in training. Of two requests for one SAE, the later waits for the earlier; a retry waits unless training
        follows.
        """
        done, waiting = [], set[str]()
        for request in self.requests:
            held = request.action == "retry" and self.retries != "now"
            if not held and waiting.isdisjoint(request.saes) and carry_out(self._bucket, self._plan, request, busy):
                done.append(request)
            else:
                waiting |= set(request.saes)
        self._forget(done)
        return done

    def evaluated(self) -> None:
        """Take the requests for an evaluation as done: every checkpoint is evaluated now."""
        done = [request for request in self.requests if request.action == "evaluate"]
        for request in done:
            remove_request(self._bucket, self._plan.name, request)
        self._forget(done)

    def look(self) -> None:
        """Read the requests now."""
        if self._thread.is_alive():
            self._read()

    def _forget(self, done: Collection[Request]) -> None:
        with self._lock:
            self._done |= {request.id for request in done}
            self._requests = [request for request in self._requests if request.id not in self._done]

    def _keep_in_touch(self) -> None:
        while not self._ending.wait(WRITE_SECONDS):
            self._write()
            self._read()

    def _write(self) -> None:
        with self._lock:
            progress = self._progress
        if progress is self._written:
            return
        try:
            write_progress(self._bucket, progress.model_copy(update={"written": time.time()}))
            self._written = progress
        except StorageError as error:
            log.warning("the sweep's progress was not written: %s", error)

    def _read(self) -> None:
        try:
            found = read_requests(self._bucket, self._plan.name)
        except StorageError as error:
            log.warning("the sweep's requests were not read: %s", error)
            return
        with self._lock:
            self._requests = [request for request in found if request.id not in self._done]


def row_fields(row: Row | None) -> dict[str, float | None] | None:
    """Return a history's row as progress holds it.

    A number that is not finite becomes None.
    """
    if row is None:
        return None
    return {name: value if value == value and abs(value) != float("inf") else None for name, value in asdict(row).items()}


def _sentence(error: BaseException | None) -> str | None:
    match error:
        case None:
            return None
        case KeyboardInterrupt() | Stopped():
            return "it was stopped; everything committed is kept"
        case ScopemillError():
            return str(error)
    return f"{type(error).__name__}: {error}"
