"""The trainer as a Ray actor: a process that trains one SAE after another."""

import threading
from collections.abc import Callable, Sequence

import ray
import torch

from scopemill.proto import metrics
from scopemill.proto.bucket import Bucket
from scopemill.proto.memory import keep_freed_memory
from scopemill.trainer.run import Assignment, Progress, Run


class Trainer:
    """``run`` one assignment after another. ``leave`` ends one of them early, ``stop`` all of them."""

    def __init__(self, bucket_url: str, threads: int, gpu: bool):
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._bucket, self._device = Bucket(bucket_url), torch.device("cuda" if gpu else "cpu")
        self._run: Run | None = None
        self._stopping = False
        self._lock = threading.Lock()  # between a run's beginning and the words that end it
        self._metrics_address = metrics.expose()

    def metrics_address(self) -> str:
        return self._metrics_address

    def node(self) -> str:
        """The id of the Ray node that this process is on."""
        return ray.get_runtime_context().get_node_id()

    def run(self, assignment: Assignment, server: str | Callable[[], str], keys: str | None = None) -> int:
        """Train one SAE; returns the steps done: all of them, or those before it was stopped."""
        run = Run(self._bucket, assignment, self._device)
        with self._lock:
            for metric in metrics.OF_TRAINER:
                metric.clear()  # only now: until here they told how the SAE before ended
            self._run = run
            if self._stopping:
                run.stop()
        return run.run(server, keys)

    def progress(self, steps: Sequence[int] = ()) -> Progress | None:
        """Of the assignment that was begun last."""
        return self._run.progress(steps) if self._run else None

    def leave(self, name: str) -> None:
        """Checkpoint and return from the run of this SAE; of another that is in work by now nothing is stopped."""
        with self._lock:
            if self._run and self._run.name == name:
                self._run.stop()

    def stop(self) -> None:
        """Checkpoint and return, now and from every run that is still to begin: this process is about to end."""
        with self._lock:
            self._stopping = True
            if self._run:
                self._run.stop()


# One thread trains; the others answer questions and take the word to stop. If the process dies, Ray starts another and
# calls ``run`` again, which goes on at the newest checkpoint.
TrainerActor = ray.remote(max_concurrency=3, max_restarts=3, max_task_retries=3)(Trainer)
