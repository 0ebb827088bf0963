"""Write and read checkpoints.

They hold all that a trainer needs to resume as if it had never stopped. Weights, optimiser state and dead counters are safetensors.
``checkpoint.json`` is written last and commits the checkpoint; its ``step`` is the next batch of the stream, which is all the state of
the data. Every file carries a checksum. Where the SAE is sharded, rank 0 gathers what it writes and scatters what it reads, so the
files have the unsharded format.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from scopemill.proto.errors import Conflict, SaeFormatError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage import checksums as seal
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, checksummed_tensors
from scopemill.trainer.config.identity import LATER, PACE, recorded_config
from scopemill.trainer.config.recipe import SaeConfig, only_read
from scopemill.trainer.config.wiring import Shape, Wiring
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.sae.weights import check_tensors
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop


@dataclass(frozen=True)
class CheckpointRecord:
    """Describe ``checkpoint.json``."""

    step: int  # the next batch of the stream: the cursor, and the checkpoint's number
    skipped: int  # batches before this one that were lost: 0 unless the server was told to `skip`
    tokens: int
    wiring: dict[str, Any]  # see `Wiring`
    config: dict[str, Any]

    @property
    def sae_config(self) -> SaeConfig:
        """Return the SAE's configuration."""
        return recorded_config(self.config)


def steps_of(bucket: Bucket, layout: SaeLayout) -> list[int]:
    """Return the steps with a committed checkpoint, ascending."""
    steps = sorted(int(name) for name in bucket.names(layout.checkpoints) if name.isdecimal())
    return [step for step in steps if bucket.exists(layout.checkpoint(step).record)]


def newest(bucket: Bucket, layout: SaeLayout) -> int:
    """Return the step of the last committed checkpoint; 0 if there is none.

    Training resumes at this step.
    """
    return max(steps_of(bucket, layout), default=0)


def save(bucket: Bucket, layout: SaeLayout, wiring: Wiring, loop: Loop) -> None:
    """Commit a checkpoint, then remove older optimiser states.

    Only the newest is ever resumed. Other ranks call `send_state`.
    """
    record = CheckpointRecord(loop.step_number, loop.skipped, loop.tokens, wiring.to_json(), loop.config.model_dump(mode="json"))
    place = layout.checkpoint(record.step)
    older = [step for step in steps_of(bucket, layout) if step < record.step]
    shard = loop.sae.shard
    bucket.write(place.weights, *checksummed_tensors(safetensors.torch.save(shard.gather(loop.sae.state_dict()))))
    bucket.write(place.optimizer, *checksummed_tensors(safetensors.torch.save(shard.gather(loop.state()))))
    bucket.create(place.record, checksummed_record(vars(record)))
    for step in older:
        bucket.remove(layout.checkpoint(step).optimizer)


def send_state(loop: Loop) -> None:
    """Send rank 0 what `save` gathers from this rank."""
    for tensors in (loop.sae.state_dict(), loop.state()):
        loop.sae.shard.gather(tensors)


def read_record(bucket: Bucket, layout: SaeLayout, step: int) -> CheckpointRecord:
    """Return the record of a checkpoint; SaeFormatError if the file is not one."""
    path = layout.checkpoint(step).record
    try:
        return CheckpointRecord(**seal.read_record(bucket, path))
    except TypeError as error:
        raise SaeFormatError(f"{bucket.place(path)} is not a checkpoint's record: {error}") from error


def load_sae(bucket: Bucket, layout: SaeLayout, step: int) -> tuple[Sae, CheckpointRecord]:
    """Return the SAE of a checkpoint, for scaled activations.

    Raises SaeFormatError if its files do not fit each other.
    """
    record, place = read_record(bucket, layout, step), layout.checkpoint(step)
    sae = _described(bucket, place.record, record)
    _fill(sae.shard, sae.state_dict(), bucket, place.weights)
    return sae, record


def load_loop(
    bucket: Bucket,
    layout: SaeLayout,
    step: int,
    config: SaeConfig,
    device: torch.device | str = "cpu",
    waited: Callable[[], float] = lambda: 0.0,
    shard: LatentShard | None = None,
) -> Loop:
    """Return a loop that resumes after a checkpoint.

    Raises Conflict if its configuration differs in more than how often it saves and logs. Other ranks call `receive_loop`.
    """
    record, wanted = read_record(bucket, layout, step), config.model_dump(mode="json")
    defaults = {name: field.default for name, field in type(config).model_fields.items() if not field.is_required()}
    # Records of earlier versions hold fields that no SAE of this kind reads, and lack fields that came later.
    trained = defaults | only_read(LATER | record.config) | {name: wanted[name] for name in PACE}
    if trained != wanted:
        key = next(k for k in wanted | trained if trained.get(k) != wanted.get(k))
        raise Conflict(
            f"{bucket.place(layout.root)} was trained with {key} = {trained.get(key)!r}, and this run asks for {wanted.get(key)!r}"
        )
    place = layout.checkpoint(step)
    sae = _described(bucket, place.record, record, shard).to(device)
    _fill(sae.shard, sae.state_dict(), bucket, place.weights)
    loop = Loop(sae, config, History.load(bucket, layout.history, step), waited)
    state = loop.state()
    _fill(sae.shard, state, bucket, place.optimizer)
    loop.restore(step, state)
    return loop


def receive_loop(config: SaeConfig, shape: Shape, step: int, device: torch.device, shard: LatentShard) -> Loop:
    """Return the loop of another rank than 0, with what `load_loop` scatters to it."""
    loop = Loop(_blank(config, shape, shard).to(device), config, History())
    state = loop.state()
    for tensors in (loop.sae.state_dict(), state):
        shard.scatter(tensors, dict)
    loop.restore(step, state)
    return loop


def _described(bucket: Bucket, path: str, record: CheckpointRecord, shard: LatentShard | None = None) -> Sae:
    """Return the SAE of a record, or one rank's shard, weights still to be filled in."""
    try:
        return _blank(record.sae_config, Wiring.from_json(record.wiring).shape, shard)
    except (LookupError, TypeError, ValueError) as error:
        raise SaeFormatError(f"{bucket.place(path)} does not describe an SAE: {' '.join(repr(error).split())}") from error


def _blank(config: SaeConfig, shape: Shape, shard: LatentShard | None = None) -> Sae:
    return initial_sae(config, shape, torch.zeros(shape.d_out), shard)


def _fill(shard: LatentShard, into: dict[str, torch.Tensor], bucket: Bucket, path: str) -> None:
    """Fill this rank's tensors from a file; SaeFormatError unless the file holds exactly these tensors."""

    def whole() -> dict[str, torch.Tensor]:
        tensors = _read(bucket, path)
        check_tensors(bucket.place(path), tensors, {name: shard.full_shape(name, tensor) for name, tensor in into.items()})
        return tensors

    shard.scatter(into, whole)


def _read(bucket: Bucket, path: str) -> dict[str, torch.Tensor]:
    data = seal.read_tensors(bucket, path)
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise SaeFormatError(f"{bucket.place(path)} cannot be read: {error}") from error
