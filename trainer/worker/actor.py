"""The trainer as a Ray actor: a process that trains SAEs of one stream at a time, one group after another."""

import threading
from collections.abc import Callable, Sequence

import ray
import torch

from scopemill.proto import metrics
from scopemill.proto.config import LOOPBACK
from scopemill.proto.errors import RankLost
from scopemill.proto.memory import keep_freed_memory
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.parallel.process_group import Rendezvous, join
from scopemill.trainer.parallel.shards import DistributedShard
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.follower import follow
from scopemill.trainer.worker.group_trainer import Run
from scopemill.trainer.worker.sae_trainer import Outcome, Progress


class Trainer:
    """``run`` one group of assignments after another, or ``lead`` others that ``follow`` in the training of a wide SAE.

    ``leave`` ends one SAE early, ``stop`` all of them.
    """

    def __init__(self, bucket_url: str, threads: int, gpu: bool):
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._bucket, self._device = Bucket(bucket_url), torch.device("cuda" if gpu else "cpu")
        self._run: Run | None = None
        self._meeting: Rendezvous | None = None
        self._stopping = False
        self._lock = threading.Lock()  # between a run's beginning and the words that end it

    def node(self) -> str:
        """The id of the Ray node that this process is on."""
        return ray.get_runtime_context().get_node_id()

    def run(self, assignments: list[Assignment], server: str | Callable[[], str], keys: str | None = None) -> dict[str, Outcome]:
        """Train SAEs of one stream together; how it went with each, by its name."""
        run = Run(self._bucket, assignments, self._device)
        self._take(run)
        return run.run(server, keys)

    # Of a wide SAE. Whoever comes too late finds nobody: Ray must not by itself call any of these again.

    @ray.method(max_task_retries=0)
    def meet(self, here: bool) -> str:
        """The address at which the others find this process; ``here``: all are on this node."""
        self._meeting = Rendezvous(LOOPBACK if here else ray.util.get_node_ip_address())
        return self._meeting.address

    @ray.method(max_task_retries=0)
    def lead(
        self, assignment: Assignment, server: str | Callable[[], str], keys: str | None, address: str, parts: int
    ) -> dict[str, Outcome]:
        """``run`` an SAE whose latents are divided over so many processes, which meet at this one's ``address``."""
        meeting, self._meeting = self._meeting, None
        if meeting is None or meeting.address != address:
            raise RankLost(f"the process that was to lead {assignment.name} at {address} died before it began")
        with meeting.process_group(parts, self._device) as group:
            run = Run(self._bucket, [assignment], self._device, DistributedShard(group, assignment.config.width))
            self._take(run)
            return run.run(server, keys)

    @ray.method(max_task_retries=0)
    def follow(self, assignment: Assignment, address: str, rank: int, parts: int) -> None:
        """Hold the latents of part ``rank``, until the leader says that it is over."""
        self._take(None)
        host = LOOPBACK if address.startswith(LOOPBACK) else ray.util.get_node_ip_address()
        with join(address, host, rank, parts, self._device) as group:
            follow(assignment, DistributedShard(group, assignment.config.width), self._device)

    def _take(self, run: Run | None) -> None:
        """What others ask and say is about this run from now on; a follower has none."""
        with self._lock:
            for metric in metrics.OF_TRAINER:
                metric.clear()  # only now: until here they told how the SAEs before ended
            self._run = run
            if run and self._stopping:
                run.stop()

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
