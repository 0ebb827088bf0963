"""What every phase of the driver does with its actors: list their metrics, hand out work, and end them in peace."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from scopemill.deploy.cluster.scrape_targets import Targets, expose
from scopemill.proto.errors import ScopemillError

POLL_SECONDS = 0.5
DRAIN_SECONDS = 20.0  # for actors to commit what they have when a phase is broken off


class ActorGroup:
    """Actors of one role for the length of a ``with``, each of which has ``stop``. Their metrics are exposed and listed.

    If the block is broken off, by Ctrl-C or by an error, the actors are asked to stop and the calls noted in ``open``
    are given time to return, so that trainers can checkpoint. Then, as at any end, the actors are killed.
    """

    def __init__(self, role: str, actors: list, targets: Targets):
        self.actors, self.open = actors, list[Any]()
        self._role, self._targets = role, targets
        self._addresses: list[str] = []

    def __enter__(self) -> "ActorGroup":
        try:
            self._addresses = get([self._expose(actor) for actor in self.actors])
            self._targets.set(self._role, self._addresses)
        except BaseException:
            self._end()
            raise
        return self

    def replace(self, old: Any, new: Any) -> None:
        """Take in an actor that came up in place of one that died for good; ``old`` None: one more."""
        address = get(self._expose(new))
        if old is None:
            self.actors.append(new)
            self._addresses.append(address)
        else:
            place = self.actors.index(old)
            self.actors[place], self._addresses[place] = new, address
        self._targets.set(self._role, self._addresses)

    def _expose(self, actor: Any) -> Any:
        """The call that has an actor's process expose its metrics, and returns where."""
        return actor.__ray_call__.remote(expose, self._targets.beyond)

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            if kind is not None:  # one that does not answer in time loses what it had not committed, nothing else
                calls = [actor.stop.remote() for actor in self.actors] + self.open
                ray.wait(calls, num_returns=len(calls), timeout=DRAIN_SECONDS)
        finally:
            self._end()

    def _end(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
        self._targets.set(self._role, [])

    def work_off(
        self, queues: list[list], calls: list[Callable], done: Callable[[Any], None], look: Callable[[], None] = lambda: None
    ) -> None:
        """Give each call the next item of its queue whenever it is free, until the queues are empty.

        Queues may be one and the same list: then whoever is free takes the next. ``done`` gets each result, and
        ``look`` is called now and then. The first error ends it.
        """
        running: dict[Any, tuple[list, Callable]] = {}

        def start(queue: list, call: Callable) -> None:
            if queue:
                running[call(queue.pop(0))] = (queue, call)

        for queue, call in zip(queues, calls, strict=True):
            start(queue, call)
        while running:
            self.open = list(running)
            ready, _ = ray.wait(self.open, timeout=POLL_SECONDS)
            for ref in ready:
                queue, call = running.pop(ref)
                done(get(ref))
                start(queue, call)
            look()


def get(refs: Any) -> Any:
    """``ray.get``, with our own errors as they were raised."""
    try:
        return ray.get(refs)
    except RayError as error:
        raise ours(error) from error


def ours(error: RayError) -> ScopemillError:
    """Our own error as it was raised, or one of ours that says why."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, ScopemillError) else ScopemillError(reason(error))


def ask(refs: list) -> list:
    """Answers of actors that may be busy starting, or dead: None for those that do not answer at once."""
    ready = ray.wait(refs, num_returns=len(refs), timeout=POLL_SECONDS)[0] if refs else []
    answers = []
    for ref in refs:
        try:
            answers.append(ray.get(ref) if ref in ready else None)
        except RayError:
            answers.append(None)  # the call that did the work tells why
    return answers


def reason(error: RayError) -> str:
    """Why a call failed, in one sentence."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ScopemillError):
        return str(cause)
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no reason given'}"
