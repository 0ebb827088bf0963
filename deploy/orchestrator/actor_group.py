"""Manage the actors of one phase: expose their metrics, hand out work, stop them."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from scopemill.deploy.cluster.scrape_targets import Targets, expose
from scopemill.proto.errors import ScopemillError

POLL_SECONDS = 0.5
DRAIN_SECONDS = 20.0  # for actors to commit what they have when a phase is broken off


class ActorGroup:
    """Hold the actors of one role for the length of a ``with``.

    Their metrics are exposed and listed. Every actor has a method ``stop``. If an error or Ctrl-C ends the block, the group calls
    ``stop`` and gives ``pending`` calls time to return, so that trainers can checkpoint. At every end, the group kills its
    actors.
    """

    def __init__(self, role: str, actors: list[Any], targets: Targets):
        self.actors = actors
        self.pending: list[Any] = []  # calls to wait for when the phase is broken off
        self._role, self._targets = role, targets
        self._addresses: list[str] = []

    def __enter__(self) -> "ActorGroup":
        try:
            self._addresses = get([self._expose(actor) for actor in self.actors])
            self._targets.set(self._role, self._addresses)
        except BaseException:
            self._kill()
            raise
        return self

    def replace(self, old: Any | None, new: Any) -> None:
        """Put a new actor in the place of a dead one.

        With ``old`` None, the actor is added.
        """
        address = get(self._expose(new))
        if old is None:
            self.actors.append(new)
            self._addresses.append(address)
        else:
            index = self.actors.index(old)
            self.actors[index], self._addresses[index] = new, address
        self._targets.set(self._role, self._addresses)

    def _expose(self, actor: Any) -> Any:
        return actor.__ray_call__.remote(expose, self._targets.beyond)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if kind is not None:  # an actor that does not answer in time loses only what it had not committed
                calls = [actor.stop.remote() for actor in self.actors] + self.pending
                ray.wait(calls, num_returns=len(calls), timeout=DRAIN_SECONDS)
        finally:
            self._kill()

    def _kill(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
        self._targets.set(self._role, [])

    def work_off(
        self,
        queues: Sequence[list[Any]],
        calls: Sequence[Callable[[Any], Any]],
        done: Callable[[Any], None],
        look: Callable[[], None] = lambda: None,
        failed: Callable[[Any, ScopemillError], None] | None = None,
    ) -> None:
        """Give each free call the next item of its queue, until all queues are empty.

        Several calls may share one queue. ``done`` gets each result; ``look`` is called after every wait. ``failed`` gets each item whose
        call raised an error, and the work goes on; without it, and where an actor is dead, the first error ends the work.
        """
        running: dict[Any, tuple[Any, list[Any], Callable[[Any], Any]]] = {}

        def start(queue: list[Any], call: Callable[[Any], Any]) -> None:
            if queue:
                item = queue.pop(0)
                running[call(item)] = (item, queue, call)

        for queue, call in zip(queues, calls, strict=True):
            start(queue, call)
        while running:
            self.pending = list(running)
            ready, _ = ray.wait(self.pending, timeout=POLL_SECONDS)
            for ref in ready:
                item, queue, call = running.pop(ref)
                try:
                    done(ray.get(ref))
                except RayError as error:
                    if failed is None or not isinstance(error, RayTaskError):
                        raise as_scopemill_error(error) from error
                    failed(item, as_scopemill_error(error))
                start(queue, call)
            look()


def get(refs: Any) -> Any:
    """Return what ``ray.get`` returns, and raise Scopemill's own errors as the actor raised them."""
    try:
        return ray.get(refs)
    except RayError as error:
        raise as_scopemill_error(error) from error


def as_scopemill_error(error: RayError) -> ScopemillError:
    """Return the ScopemillError that an actor raised, or make one from Ray's error.

    The new one gives the reason of Ray's error.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, ScopemillError) else ScopemillError(_reason(cause))


def ask(refs: Sequence[Any]) -> list[Any]:
    """Return the answers of calls that return at once.

    The answer of a busy or dead actor is None.
    """
    ready = ray.wait(list(refs), num_returns=len(refs), timeout=POLL_SECONDS)[0] if refs else []
    answers = []
    for ref in refs:
        try:
            answers.append(ray.get(ref) if ref in ready else None)
        except RayError:
            answers.append(None)  # the call that did the work raises the reason
    return answers


def _reason(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no reason given'}"
