"""Train SAEs that share one copy of each batch. Nothing here knows Ray."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from scopemill.activation_server.client import StreamClient
from scopemill.proto.errors import Stopped
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.worker.assignment import Assignment, Batch, View
from scopemill.trainer.worker.sae_trainer import Outcome, Progress, SaeTrainer
from scopemill.trainer.worker.transfer import Transfer


class GroupTrainer:
    """Train a group of SAEs of one stream.

    Each SAE trains until its last step or until it leaves, and resumes from its own newest checkpoint. The group resumes at the
    earliest of these, and SAEs with later checkpoints ignore earlier batches. To the stream the group is one consumer, with the name of
    its first SAE. ``shard``: this rank's latents of the only SAE, if followers hold the others.
    """

    def __init__(
        self, bucket: Bucket, assignments: Sequence[Assignment], device: torch.device | str = "cpu", shard: LatentShard | None = None
    ):
        (self._stream,) = {assignment.stream for assignment in assignments}
        self._device = torch.device(device)
        self._client: StreamClient | None = None
        self._counted = 0.0  # seconds of waiting that the metric already includes
        self.trainers = [SaeTrainer(bucket, assignment, self._device, self._waited, shard) for assignment in assignments]

    def run(self, server: str | Callable[[], str], keys: str | None = None) -> dict[str, Outcome]:
        """Train on the server's batches; return every SAE's outcome, by its name.

        ``server``: the server's address, or a function that finds the address.
        """
        for trainer in self.trainers:
            trainer.begin()
        if training := self._training:
            try:
                self._feed(server, keys)
            except Exception as error:  # of the stream: training ends for every SAE
                for trainer in training:
                    if trainer.outcome is None:
                        trainer.fail(error)
        return {trainer.name: trainer.outcome for trainer in self.trainers if trainer.outcome is not None}

    def progress(self, steps: Sequence[int] = ()) -> list[Progress]:
        """Return each SAE's progress, with existing history rows at ``steps``."""
        return [trainer.progress(steps) for trainer in self.trainers]

    def leave(self, name: str) -> None:
        """End the training of one SAE with a checkpoint after the current step.

        The others train on. Does nothing if the SAE is not in the group.
        """
        for trainer in self.trainers:
            if trainer.name == name:
                trainer.leave()

    def stop(self) -> None:
        """End all training with checkpoints after the current step."""
        for trainer in self.trainers:
            trainer.leave()

    @property
    def _training(self) -> list[SaeTrainer]:
        return [trainer for trainer in self.trainers if trainer.outcome is None]

    def _feed(self, server: str | Callable[[], str], keys: str | None) -> None:
        """Pass each batch of the stream to the SAEs that still train."""
        first, stop = min(trainer.step for trainer in self._training), max(trainer.steps for trainer in self._training)
        transfer = Transfer(self._device)

        def take(arrays: list[np.ndarray]):
            start = time.perf_counter()
            rows = transfer.take(arrays)
            self._share("copy", time.perf_counter() - start)
            return rows

        self._client = client = StreamClient(server, self._stream, self.trainers[0].name, first, stop, self._all_done, keys, take)
        try:
            for index, rows in transfer.prefetched(client):
                self._step(index, rows)
                self._share("wait", client.waited - self._counted)
                self._counted = client.waited
                if self._all_done():
                    break
                for trainer in self._training:
                    if trainer.done:
                        trainer.end()
        except Stopped:
            pass
        finally:
            client.close()  # before the last SAEs end, so that other consumers do not wait for an export
        for trainer in self._training:
            trainer.end()

    def _step(self, index: int, rows: list[torch.Tensor]) -> None:
        views: dict[View, Batch] = {}
        for trainer in self._training:
            if trainer.step <= index:
                if trainer.view not in views:
                    views[trainer.view] = trainer.view.of(rows)
                trainer.take(index, views[trainer.view])

    def _all_done(self) -> bool:
        return all(trainer.done for trainer in self.trainers)

    def _waited(self) -> float:
        return self._client.waited if self._client else 0.0

    def _share(self, phase: str, seconds: float) -> None:
        """Divide shared seconds equally among the SAEs in training, so that their sum is the process's time."""
        training = self._training
        for trainer in training:
            trainer.count_seconds(phase, seconds / len(training))
