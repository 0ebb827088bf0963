"""Checkpoints: all that a trainer needs to go on as if it had never stopped.

The weights are safetensors, the optimiser's state and the dead counters too; ``checkpoint.json`` is written
last and makes the checkpoint. Its ``step`` is the number of the next batch of the stream: the whole of the data's state.
Each carries its checksum.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from scopemill.proto import seal
from scopemill.proto.bucket import Bucket
from scopemill.proto.errors import Conflict, SaeFormatError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.seal import sealed_record, sealed_tensors
from scopemill.trainer.architectures import initial_sae
from scopemill.trainer.config import SaeConfig
from scopemill.trainer.history import History
from scopemill.trainer.loop import Loop
from scopemill.trainer.sae import Sae, check_tensors
from scopemill.trainer.wiring import Wiring


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
        return SaeConfig.model_validate_json(json.dumps(self.config))


def steps_of(bucket: Bucket, layout: SaeLayout) -> list[int]:
    """The steps with a committed checkpoint, ascending."""
    steps = sorted(int(name) for name in bucket.names(layout.checkpoints) if name.isdecimal())
    return [step for step in steps if bucket.exists(layout.checkpoint(step).record)]


def save(bucket: Bucket, layout: SaeLayout, wiring: Wiring, loop: Loop) -> None:
    """Commit a checkpoint, then drop the state of the one before: only the newest is ever resumed."""
    record = CheckpointRecord(loop.step_number, loop.skipped, loop.tokens, wiring.to_json(), loop.config.model_dump(mode="json"))
    place = layout.checkpoint(record.step)
    older = [step for step in steps_of(bucket, layout) if step < record.step]
    bucket.write(place.weights, *sealed_tensors(safetensors.torch.save(_cpu(loop.sae.state_dict()))))
    bucket.write(place.optimizer, *sealed_tensors(safetensors.torch.save(_cpu(loop.state()))))
    bucket.create(place.record, sealed_record(vars(record)))
    for step in older:
        bucket.remove(layout.checkpoint(step).optimizer)


def read_record(bucket: Bucket, layout: SaeLayout, step: int) -> CheckpointRecord:
    path = layout.checkpoint(step).record
    try:
        return CheckpointRecord(**seal.read_record(bucket, path))
    except TypeError as error:
        raise SaeFormatError(f"{bucket.place(path)} is not a checkpoint's record: {error}") from error


def load_sae(bucket: Bucket, layout: SaeLayout, step: int) -> tuple[Sae, CheckpointRecord]:
    """The SAE of a checkpoint, as trained (for scaled activations). SaeFormatError if its files do not fit each other."""
    record, place = read_record(bucket, layout, step), layout.checkpoint(step)
    weights = _read(bucket, place.weights)
    try:
        shape = Wiring.from_json(record.wiring).shape
        sae = initial_sae(record.sae_config, shape, torch.zeros(shape.d_out))
    except (LookupError, TypeError, ValueError) as error:
        raise SaeFormatError(f"{bucket.place(place.record)} does not describe an SAE: {' '.join(repr(error).split())}") from error
    check_tensors(bucket.place(place.weights), weights, {name: p.shape for name, p in sae.state_dict().items()})
    sae.load_state_dict(weights)
    return sae, record


def load_loop(
    bucket: Bucket,
    layout: SaeLayout,
    step: int,
    config: SaeConfig,
    device: torch.device | str = "cpu",
    waited: Callable[[], float] = lambda: 0.0,
) -> Loop:
    """A loop that goes on after a checkpoint; Conflict if that was trained with another configuration."""
    record, wanted = read_record(bucket, layout, step), config.model_dump(mode="json")
    if record.config != wanted:
        key = next(k for k in wanted | record.config if record.config.get(k) != wanted.get(k))
        raise Conflict(
            f"{bucket.place(layout.root)} was trained with {key} = {record.config.get(key)!r}, and this run asks for {wanted.get(key)!r}"
        )
    sae, _ = load_sae(bucket, layout, step)
    loop = Loop(sae.to(device), config, History.load(bucket, layout.history, step), waited)
    path = layout.checkpoint(step).optimizer
    state = _read(bucket, path)
    check_tensors(bucket.place(path), state, {name: tensor.shape for name, tensor in loop.state().items()})
    loop.restore(step, state)
    return loop


def _read(bucket: Bucket, path: str) -> dict[str, torch.Tensor]:
    data = seal.read_tensors(bucket, path)
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise SaeFormatError(f"{bucket.place(path)} cannot be read: {error}") from error


def _cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
