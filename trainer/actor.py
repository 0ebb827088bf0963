"""The trainer as a Ray actor: a process that trains SAEs of one stream at a time, one group after another."""

import threading
from collections.abc import Callable, Sequence

import ray
import torch

from scopemill.proto import metrics
from scopemill.proto.bucket import Bucket
from scopemill.proto.memory import keep_freed_memory
from scopemill.trainer.assignment import Assignment
from scopemill.trainer.member import Outcome, Progress
from scopemill.trainer.run import Run


class Trainer:
    """``run`` one group of assignments after another. ``leave`` ends one SAE early, ``stop`` all of them."""

    def __init__(self, bucket_url: str, threads: int, gpu: bool):
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._bucket, self._device = Bucket(bucket_url), torch.device("cuda" if gpu else "cpu")
        self._run: Run | None = None
        self._stopping = False
        self._lock = threading.Lock()  # between a run's beginning and the words that end it

    def node(self) -> str:
        """The id of the Ray node that this process is on."""
        return ray.get_runtime_context().get_node_id()

    def run(self, assignments: list[Assignment], server: str | Callable[[], str], keys: str | None = None) -> dict[str, Outcome]:
        """Train SAEs of one stream together; how it went with each, by its name."""
        run = Run(self._bucket, assignments, self._device)
        with self._lock:
            for metric in metrics.OF_TRAINER:
                metric.clear()  # only now: until here they told how the SAEs before ended
            self._run = run
            if self._stopping:
                run.stop()
        return run.run(server, keys)

    def progress(self, steps: Sequence[int] = ()) -> list[Progress]:
        """Of the assignments that were begun last."""
        return self._run.progress(steps) if self._run else []

    def leave(self, name: str) -> None:
        """Checkpoint this SAE and train it no further; nothing is done if it is not in work by now."""
        with self._lock:
            if self._run:
                self._run.leave(name)

    def stop(self) -> None:
        """Checkpoint and return, now and from every run that is still to begin: this process is about to end."""
        with self._lock:
            self._stopping = True
            if self._run:
                self._run.stop()


# One thread trains; the others answer questions and take the word to stop. If the process dies, Ray starts another and
# calls ``run`` again, which goes on at the newest checkpoints.
TrainerActor = ray.remote(max_concurrency=3, max_restarts=3, max_task_retries=3)(Trainer)
