"""Checkpoints: all that a trainer needs to go on as if it had never stopped.

The weights are safetensors, the optimiser's state and the dead counters too; ``checkpoint.json`` is written
last and makes the checkpoint. Its ``step`` is the number of the next batch of the stream: the whole of the data's state.
Each carries its checksum. Where several processes hold the SAE's latents, the leader writes what all have and deals out what it
reads, so a checkpoint does not tell how many they were.
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
from scopemill.trainer.config.recipe import SaeConfig, only_read, sae_config
from scopemill.trainer.config.wiring import Shape, Wiring
from scopemill.trainer.parallel.shards import Part
from scopemill.trainer.sae.base import Sae, check_tensors
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop


@dataclass(frozen=True)
class CheckpointRecord:
    """``checkpoint.json``."""

    step: int  # the next batch of the stream: the cursor, and the checkpoint's number
    skipped: int  # of the batches before, how many never came: 0 unless the server was told to `skip`
    tokens: int
    wiring: dict[str, Any]  # see `Wiring`
    config: dict[str, Any]

    @property
    def sae_config(self) -> SaeConfig:
        return sae_config(self.config)


def steps_of(bucket: Bucket, layout: SaeLayout) -> list[int]:
    """The steps with a committed checkpoint, ascending."""
    steps = sorted(int(name) for name in bucket.names(layout.checkpoints) if name.isdecimal())
    return [step for step in steps if bucket.exists(layout.checkpoint(step).record)]


def newest(bucket: Bucket, layout: SaeLayout) -> int:
    """The step of the last committed checkpoint, where training goes on; 0 if there is none."""
    return max(steps_of(bucket, layout), default=0)


def save(bucket: Bucket, layout: SaeLayout, wiring: Wiring, loop: Loop) -> None:
    """Commit a checkpoint, then drop the state of the one before: only the newest is ever resumed. The other parts `hand_over`."""
    record = CheckpointRecord(loop.step_number, loop.skipped, loop.tokens, wiring.to_json(), loop.config.model_dump(mode="json"))
    place = layout.checkpoint(record.step)
    older = [step for step in steps_of(bucket, layout) if step < record.step]
    part = loop.sae.part
    bucket.write(place.weights, *checksummed_tensors(safetensors.torch.save(part.gathered(loop.sae.state_dict()))))
    bucket.write(place.optimizer, *checksummed_tensors(safetensors.torch.save(part.gathered(loop.state()))))
    bucket.create(place.record, checksummed_record(vars(record)))
    for step in older:
        bucket.remove(layout.checkpoint(step).optimizer)


def hand_over(loop: Loop) -> None:
    """What `save` takes from another part than the leader's."""
    for tensors in (loop.sae.state_dict(), loop.state()):
        loop.sae.part.gathered(tensors)


def read_record(bucket: Bucket, layout: SaeLayout, step: int) -> CheckpointRecord:
    path = layout.checkpoint(step).record
    try:
        return CheckpointRecord(**seal.read_record(bucket, path))
    except TypeError as error:
        raise SaeFormatError(f"{bucket.place(path)} is not a checkpoint's record: {error}") from error


def load_sae(bucket: Bucket, layout: SaeLayout, step: int) -> tuple[Sae, CheckpointRecord]:
    """The SAE of a checkpoint, as trained (for scaled activations). SaeFormatError if its files do not fit each other."""
    record, place = read_record(bucket, layout, step), layout.checkpoint(step)
    sae = _described(bucket, place.record, record)
    _fill(sae.part, sae.state_dict(), bucket, place.weights)
    return sae, record


def load_loop(
    bucket: Bucket,
    layout: SaeLayout,
    step: int,
    config: SaeConfig,
    device: torch.device | str = "cpu",
    waited: Callable[[], float] = lambda: 0.0,
    part: Part | None = None,
) -> Loop:
    """A loop that goes on after a checkpoint; Conflict if that was trained with another configuration. The other parts `take_over`."""
    record, wanted = read_record(bucket, layout, step), config.model_dump(mode="json")
    defaults = {name: field.default for name, field in type(config).model_fields.items() if not field.is_required()}
    trained = defaults | only_read(record.config)  # records of earlier versions hold fields that no SAE of this kind reads
    if trained != wanted:
        key = next(k for k in wanted | trained if trained.get(k) != wanted.get(k))
        raise Conflict(
            f"{bucket.place(layout.root)} was trained with {key} = {trained.get(key)!r}, and this run asks for {wanted.get(key)!r}"
        )
    place = layout.checkpoint(step)
    sae = _described(bucket, place.record, record, part).to(device)
    _fill(sae.part, sae.state_dict(), bucket, place.weights)
    loop = Loop(sae, config, History.load(bucket, layout.history, step), waited)
    state = loop.state()
    _fill(sae.part, state, bucket, place.optimizer)
    loop.restore(step, state)
    return loop


def take_over(config: SaeConfig, shape: Shape, step: int, device: torch.device, part: Part) -> Loop:
    """What `load_loop` deals out to another part than the leader's."""
    loop = Loop(_blank(config, shape, part).to(device), config, History())
    state = loop.state()
    for tensors in (loop.sae.state_dict(), state):
        part.deal(tensors, dict)
    loop.restore(step, state)
    return loop


def _described(bucket: Bucket, path: str, record: CheckpointRecord, part: Part | None = None) -> Sae:
    """The SAE of a record, or a part of it, its weights still to be filled in."""
    try:
        return _blank(record.sae_config, Wiring.from_json(record.wiring).shape, part)
    except (LookupError, TypeError, ValueError) as error:
        raise SaeFormatError(f"{bucket.place(path)} does not describe an SAE: {' '.join(repr(error).split())}") from error


def _blank(config: SaeConfig, shape: Shape, part: Part | None = None) -> Sae:
    return initial_sae(config, shape, torch.zeros(shape.d_out), part)


def _fill(part: Part, into: dict[str, torch.Tensor], bucket: Bucket, path: str) -> None:
    """Tensors, or what is here of them, from a file that holds exactly these; SaeFormatError if it does not."""

    def whole() -> dict[str, torch.Tensor]:
        tensors = _read(bucket, path)
        check_tensors(bucket.place(path), tensors, {name: part.shape(name, tensor) for name, tensor in into.items()})
        return tensors

    part.deal(into, whole)


def _read(bucket: Bucket, path: str) -> dict[str, torch.Tensor]:
    data = seal.read_tensors(bucket, path)
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise SaeFormatError(f"{bucket.place(path)} cannot be read: {error}") from error
