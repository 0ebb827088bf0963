"""Assign SAEs of a small synthetic dataset, and read what their training wrote."""

import numpy as np

from scopemill.proto.dataset import HookStats, pack_vector
from scopemill.proto.errors import ScopemillError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.wire import StreamSpec
from scopemill.trainer.training.history import History
from scopemill.trainer.worker.actor import Trainer
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.group_trainer import GroupTrainer
from scopemill.trainer.worker.sae_trainer import Progress
from support.sae_reference import quick

HOOK = "blocks.0.hook_resid_post"
STREAM = StreamSpec("synthetic", (HOOK,), batch_size=16, seed=3, shards_side_by_side=3)
STEPS = 40  # more than two epochs of the dataset below


def assign(folder: str = "a", **changes) -> Assignment:
    config = quick(
        **dict(width=24, sparsity=0.05, batch_size=16, tokens=16 * STEPS, checkpoint_every=16, log_every=4, lr_warmup_steps=10,
               sparsity_warmup_steps=20, initial_threshold=0.3, bandwidth=0.3, dead_after_tokens=64)
        | changes
    )  # fmt: skip
    return Assignment(
        name=f"sae-{folder}",
        root=f"saes/synthetic/{HOOK}/width_24/{config.architecture}/{folder}",
        inputs=(HookStats(name=HOOK, d=8, scale=2.5, mean=pack_vector(np.linspace(-1, 1, 8)), norm_limit=None),),
        targets=(),
        stream=STREAM,
        config=config,
        model="synthetic",
        metadata={"context_size": 8},
        provenance={"sweep": "test"},
    )


def train(trainer: GroupTrainer | Trainer, *arguments) -> int:
    """Return the steps done by the only SAE; raise its error."""
    (outcome,) = trainer.run(*arguments).values()
    if isinstance(outcome, ScopemillError):
        raise outcome
    return outcome


def progress(trainer: GroupTrainer | Trainer, steps: tuple[int, ...] = ()) -> Progress:
    (told,) = trainer.progress(steps)
    return told


def weights(bucket: Bucket, assignment: Assignment) -> bytes:
    return bucket.read(SaeLayout(assignment.root).checkpoint(assignment.config.steps).weights)


def rows(bucket: Bucket, assignment: Assignment) -> list[dict]:
    history = History.load(bucket, SaeLayout(assignment.root).history, 10**9)
    return [{k: v for k, v in vars(row).items() if k not in ("steps_per_second", "waiting_share")} for row in history.rows]
