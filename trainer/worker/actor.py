"""Run trainers as Ray actors: each process trains one group of SAEs after another."""

import threading
from collections.abc import Callable, Sequence

import ray
import torch
from ray.actor import ActorClass

from scopemill.proto import metrics
from scopemill.proto.config import LOOPBACK
from scopemill.proto.errors import RankLost
from scopemill.proto.memory import keep_freed_memory
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.parallel.process_group import Rendezvous, join
from scopemill.trainer.parallel.shards import DistributedShard
from scopemill.trainer.sparse.kernels.compiling import compile_loops
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.follower import follow
from scopemill.trainer.worker.group_trainer import GroupTrainer
from scopemill.trainer.worker.sae_trainer import Outcome, Progress


class Trainer:
    """Train one group of SAEs after another.

    ``run`` trains a group in this process; ``lead`` and ``follow`` train one sharded SAE over several processes. ``leave`` ends one
    SAE early, ``stop`` ends every SAE.
    """

    def __init__(self, bucket_url: str, threads: int, gpu: bool):
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._bucket, self._device = Bucket(bucket_url), torch.device("cuda" if gpu else "cpu")
        self._group: GroupTrainer | None = None
        self._meeting: Rendezvous | None = None
        self._stopping = False
        self._lock = threading.Lock()  # so that leave and stop never miss a group that is just starting

    def node(self) -> str:
        """Return the id of this process's Ray node."""
        return ray.get_runtime_context().get_node_id()

    def run(self, assignments: list[Assignment], server: str | Callable[[], str], keys: str | None = None) -> dict[str, Outcome]:
        """Train SAEs of one stream together; return every SAE's outcome, by its name."""
        group = GroupTrainer(self._bucket, assignments, self._device)
        self._switch_to(group)
        self._compile(assignments)
        return group.run(server, keys)

    # For a sharded SAE. A retry of only one of these calls would wait in vain for the other ranks, so Ray must not retry any.

    @ray.method(max_task_retries=0)
    def meet(self, here: bool) -> str:
        """Open a rendezvous and return its address.

        ``here``: all ranks are on this node.
        """
        self._meeting = Rendezvous(LOOPBACK if here else ray.util.get_node_ip_address())
        return self._meeting.address

    @ray.method(max_task_retries=0)
    def lead(
        self, assignment: Assignment, server: str | Callable[[], str], keys: str | None, address: str, parts: int
    ) -> dict[str, Outcome]:
        """Train a sharded SAE as rank 0; all ``parts`` processes meet at ``address``."""
        self._compile([assignment])
        meeting, self._meeting = self._meeting, None
        if meeting is None or meeting.address != address:
            raise RankLost(f"the process that was to lead {assignment.name} at {address} died before training started")
        with meeting.process_group(parts, self._device) as ranks:
            group = GroupTrainer(self._bucket, [assignment], self._device, DistributedShard(ranks, assignment.config.width))
            self._switch_to(group)
            return group.run(server, keys)

    @ray.method(max_task_retries=0)
    def follow(self, assignment: Assignment, address: str, rank: int, parts: int) -> None:
        """Train the shard of ``rank`` until the leader ends."""
        self._switch_to(None)
        self._compile([assignment])
        host = LOOPBACK if address.startswith(LOOPBACK) else ray.util.get_node_ip_address()
        with join(address, host, rank, parts, self._device) as ranks:
            follow(assignment, DistributedShard(ranks, assignment.config.width), self._device)

    def _compile(self, assignments: Sequence[Assignment]) -> None:
        """Compile what steps run on the CPU before batches are asked for: a trainer that compiles would delay its stream."""
        if self._device.type == "cpu":
            compile_loops(selects=any(assignment.config.latents == "topk" for assignment in assignments))

    def _switch_to(self, group: GroupTrainer | None) -> None:
        """Let ``progress``, ``leave`` and ``stop`` act on this group from now on; a follower has none."""
        with self._lock:
            for metric in metrics.OF_TRAINER:
                metric.clear()  # only now: until here the metrics showed how the previous SAEs ended
            self._group = group
            if group and self._stopping:
                group.stop()

    def progress(self, steps: Sequence[int] = ()) -> list[Progress]:
        """Return the progress of the SAEs that were started last."""
        return self._group.progress(steps) if self._group else []

    def leave(self, name: str) -> None:
        """End the training of one SAE with a checkpoint.

        Does nothing if the SAE is not in training.
        """
        with self._lock:
            if self._group:
                self._group.leave(name)

    def stop(self) -> None:
        """End all training with checkpoints, because this process is about to end.

        Groups that start later end at once.
        """
        with self._lock:
            self._stopping = True
            if self._group:
                self._group.stop()


# One thread trains; the others answer `progress`, `leave` and `stop`. If the process dies, Ray starts another and retries ``run``,
# which resumes from the newest checkpoints.
TrainerActor: ActorClass[Trainer] = ray.remote(max_concurrency=3, max_restarts=3, max_task_retries=3)(Trainer)  # type: ignore[call-overload]
