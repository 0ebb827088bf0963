"""Training of SAEs that share a stream: each takes its step on one copy of the batch. It knows no Ray."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from scopemill.activation_server.client import StreamClient
from scopemill.proto.errors import Stopped
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.worker.assignment import Assignment, Batch, View
from scopemill.trainer.worker.sae_trainer import Member, Outcome, Progress
from scopemill.trainer.worker.transfer import Transfer


class Run:
    """``run`` trains assignments of one stream, a group, each until its last step or until it leaves.

    Each begins at its own newest checkpoint: the group goes on at the earliest, and who is further lets those batches pass.
    To the stream a group is one consumer, with the name of its first SAE. ``part``: what of its only SAE's latents this process
    holds, where followers hold the others.
    """

    def __init__(
        self, bucket: Bucket, assignments: Sequence[Assignment], device: torch.device | str = "cpu", part: LatentShard | None = None
    ):
        (self._stream,) = {assignment.stream for assignment in assignments}
        self._device = torch.device(device)
        self._client: StreamClient | None = None
        self._counted = 0.0  # seconds of waiting that the metric has
        self.members = [Member(bucket, assignment, self._device, self._waited, part) for assignment in assignments]

    def run(self, server: str | Callable[[], str], keys: str | None = None) -> dict[str, Outcome]:
        """Train from the server that is, or is found, there; how it went with each SAE, by its name."""
        for member in self.members:
            member.begin()
        if training := self._training:
            try:
                self._feed(server, keys)
            except Exception as error:  # the stream's: it ends all of them
                for member in training:
                    if member.outcome is None:
                        member.fail(error)
        return {member.name: member.outcome for member in self.members if member.outcome is not None}

    def progress(self, steps: Sequence[int] = ()) -> list[Progress]:
        """Where each SAE is now; ``steps`` are those whose rows of the history are wanted, once they are there."""
        return [member.progress(steps) for member in self.members]

    def leave(self, name: str) -> None:
        """Checkpoint this SAE, if it is here, after the step in work, and go on without it."""
        for member in self.members:
            if member.name == name:
                member.leave()

    def stop(self) -> None:
        """Checkpoint all of them after the step in work, and return."""
        for member in self.members:
            member.leave()

    @property
    def _training(self) -> list[Member]:
        return [member for member in self.members if member.outcome is None]

    def _feed(self, server: str | Callable[[], str], keys: str | None) -> None:
        """Every batch of the stream to those that still want it."""
        first, stop = min(member.step for member in self._training), max(member.steps for member in self._training)
        transfer = Transfer(self._device)

        def take(arrays: list[np.ndarray]):
            start = time.perf_counter()
            rows = transfer.take(arrays)
            self._share("copy", time.perf_counter() - start)
            return rows

        self._client = client = StreamClient(server, self._stream, self.members[0].name, first, stop, self._all_leave, keys, take)
        try:
            for index, rows in transfer.in_turn(client):
                self._step(index, rows)
                self._share("wait", client.waited - self._counted)
                self._counted = client.waited
                if self._all_leave():
                    break
                for member in self._training:
                    if member.leaves:
                        member.end()
        except Stopped:
            pass
        finally:
            client.close()  # before the last ones end: nobody has to wait for their export
        for member in self._training:
            member.end()

    def _step(self, index: int, rows: list[torch.Tensor]) -> None:
        seen: dict[View, Batch] = {}
        for member in self._training:
            if member.step <= index:
                if member.view not in seen:
                    seen[member.view] = member.view.of(rows)
                member.take(index, seen[member.view])

    def _all_leave(self) -> bool:
        return all(member.leaves for member in self.members)

    def _waited(self) -> float:
        return self._client.waited if self._client else 0.0

    def _share(self, phase: str, seconds: float) -> None:
        """What was spent for all that train falls to them in equal parts, so that a process' seconds are its SAEs' in sum."""
        training = self._training
        for member in training:
            member.spent(phase, seconds / len(training))
