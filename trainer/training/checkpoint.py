"""Write and read checkpoints.

They hold all that a trainer needs to resume as if it had never stopped. Weights, optimiser state and dead counters are safetensors.
``checkpoint.json`` is written last and commits the checkpoint; its ``step`` is the next batch of the stream, which is all the state of
the data. Every file carries a checksum, and the record holds those of its parts. The last two checkpoints can be resumed. Where the
SAE is sharded, rank 0 gathers what it writes and scatters what it reads, so the files have the unsharded format.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch

from scopemill.proto.errors import Conflict, CorruptObject, MissingObject, SaeFormatError
from scopemill.proto.layout import RESUMABLE, SaeLayout
from scopemill.proto.storage import checksums as seal
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksum_of, checksummed_record, checksummed_tensors
from scopemill.trainer.config.identity import LATER, PACE, recorded_config
from scopemill.trainer.config.recipe import SaeConfig, only_read
from scopemill.trainer.config.wiring import Shape, Wiring
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.sae.weights import check_tensors
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

log = logging.getLogger(__name__)
TEXT = "the checksum of the packed text"


@dataclass(frozen=True)
class CheckpointRecord:
    """Describe ``checkpoint.json``."""

    step: int  # the next batch of the stream: the cursor, and the checkpoint's number
    skipped: int  # batches before this one that were lost: 0 unless the server was told to `skip`
    tokens: int
    wiring: dict[str, Any]  # see `Wiring`
    config: dict[str, Any]
    # Absent from records of earlier versions.
    text: str | None = None  # checksum of the packed text that the rows come from, see `DatasetManifest`
    parts: dict[str, str] = field(default_factory=dict)  # checksums of the files ``weights`` and ``optimizer``

    @property
    def sae_config(self) -> SaeConfig:
        """Return the SAE's configuration."""
        return recorded_config(self.config)


@dataclass(frozen=True)
class Data:
    """Describe the activations that an SAE is trained on."""

    wiring: Wiring
    text: str | None  # None: not known, of a dataset of an earlier version


def steps_of(bucket: Bucket, layout: SaeLayout) -> list[int]:
    """Return the steps with a committed checkpoint, ascending."""
    steps = sorted(int(name) for name in bucket.names(layout.checkpoints) if name.isdecimal())
    return [step for step in steps if bucket.exists(layout.checkpoint(step).record)]


def newest(bucket: Bucket, layout: SaeLayout) -> int:
    """Return the step of the last committed checkpoint; 0 if there is none.

    Training resumes at this step.
    """
    return max(steps_of(bucket, layout), default=0)


def newest_whole(bucket: Bucket, layout: SaeLayout, warn: Callable[[str], None] = log.warning) -> int:
    """Return the newest step that can be resumed; 0 without one.

    A damaged newer one is taken back, with a warning: its record is deleted, and training makes it again.
    """
    for step in steps_of(bucket, layout)[: -RESUMABLE - 1 : -1]:
        try:
            verify(bucket, layout, step)
            return step
        except (CorruptObject, MissingObject) as error:
            place = layout.checkpoint(step)
            warn(f"{bucket.place(place.root)} is damaged and passed over: {error}")
            bucket.remove(place.record)
    return 0


def verify(bucket: Bucket, layout: SaeLayout, step: int, optimizer: bool = True) -> None:
    """Read a checkpoint's files; raise MissingObject or CorruptObject for a damaged one.

    Those that are not resumed have no ``optimizer``.
    """
    record, place = read_record(bucket, layout, step), layout.checkpoint(step)
    seal.read_tensors(bucket, place.weights, record.parts.get("weights"))
    if optimizer:
        seal.read_tensors(bucket, place.optimizer, record.parts.get("optimizer"))


def save(bucket: Bucket, layout: SaeLayout, wiring: Wiring, loop: Loop, text: str | None = None) -> None:
    """Commit a checkpoint, then remove the optimiser states of all but the last two.

    ``text`` is the checksum of the packed text. Other ranks call `send_state`.
    """
    place, shard = layout.checkpoint(loop.step_number), loop.sae.shard
    older = [step for step in steps_of(bucket, layout) if step < loop.step_number]
    parts = {
        "weights": _write(bucket, place.weights, shard.gather(loop.sae.state_dict())),
        "optimizer": _write(bucket, place.optimizer, shard.gather(loop.state())),
    }
    config = loop.config.model_dump(mode="json")
    record = CheckpointRecord(loop.step_number, loop.skipped, loop.tokens, wiring.to_json(), config, text, parts)
    bucket.write(place.record, checksummed_record(asdict(record)))  # also over the record of a damaged checkpoint
    for step in older[: 1 - RESUMABLE]:
        bucket.remove(layout.checkpoint(step).optimizer)


def _write(bucket: Bucket, path: str, tensors: dict[str, torch.Tensor]) -> str:
    """Write tensors, and return their checksum."""
    header, body = checksummed_tensors(safetensors.torch.save(tensors))
    bucket.write(path, header, body)
    return checksum_of(header)


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
    _fill(sae.shard, sae.state_dict(), bucket, place.weights, record.parts.get("weights"))
    return sae, record


def load_loop(
    bucket: Bucket,
    layout: SaeLayout,
    step: int,
    config: SaeConfig,
    data: Data | None = None,
    history: History | None = None,
    device: torch.device | str = "cpu",
    waited: Callable[[], float] = lambda: 0.0,
    shard: LatentShard | None = None,
) -> Loop:
    """Return a loop that resumes after a checkpoint, on ``data``.

    Raises Conflict if its data differ, or its configuration in more than how often it saves and logs. Other ranks call `receive_loop`.
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
    if data:
        _check_data(bucket.place(layout.root), record, data)
    _fill(sae.shard, sae.state_dict(), bucket, place.weights, record.parts.get("weights"))
    loop = Loop(sae, config, history or History.load(bucket, layout.history, step), waited)
    state = loop.state()
    _fill(sae.shard, state, bucket, place.optimizer, record.parts.get("optimizer"))
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


def _check_data(place: str, record: CheckpointRecord, data: Data) -> None:
    """Raise Conflict, naming the difference, unless a checkpoint was trained on the same activations."""
    trained, present = _facts(Wiring.from_json(record.wiring), record.text), _facts(data.wiring, data.text)
    for name in trained | present:
        if trained.get(name) != present.get(name) and not (name == TEXT and None in (trained[name], present[name])):
            raise Conflict(
                f"{place} was trained on other activations: {name} was {trained.get(name)}, and now is {present.get(name)}. Restore the "
                "corpus and model that it was trained on, or delete this folder to train it anew"
            )


def _facts(wiring: Wiring, text: str | None) -> dict[str, object]:
    """Return what tells activations apart, by name."""
    ports = {f"{side} {i}": port for side, ports in vars(wiring).items() for i, port in enumerate(ports, 1)}
    return {f"the {key} of {name}": value for name, port in ports.items() for key, value in vars(port).items()} | {TEXT: text}


def _described(bucket: Bucket, path: str, record: CheckpointRecord, shard: LatentShard | None = None) -> Sae:
    """Return the SAE of a record, or one rank's shard, weights still to be filled in."""
    try:
        return _blank(record.sae_config, Wiring.from_json(record.wiring).shape, shard)
    except (LookupError, TypeError, ValueError) as error:
        raise SaeFormatError(f"{bucket.place(path)} does not describe an SAE: {' '.join(repr(error).split())}") from error


def _blank(config: SaeConfig, shape: Shape, shard: LatentShard | None = None) -> Sae:
    return initial_sae(config, shape, torch.zeros(shape.d_out), shard)


def _fill(shard: LatentShard, into: dict[str, torch.Tensor], bucket: Bucket, path: str, checksum: str | None) -> None:
    """Fill this rank's tensors from a file; SaeFormatError unless the file holds exactly these tensors."""

    def whole() -> dict[str, torch.Tensor]:
        tensors = _read(bucket, path, checksum)
        check_tensors(bucket.place(path), tensors, {name: shard.full_shape(name, tensor) for name, tensor in into.items()})
        return tensors

    shard.scatter(into, whole)


def _read(bucket: Bucket, path: str, checksum: str | None) -> dict[str, torch.Tensor]:
    data = seal.read_tensors(bucket, path, checksum)
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise SaeFormatError(f"{bucket.place(path)} cannot be read: {error}") from error
