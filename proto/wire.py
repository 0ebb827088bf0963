"""Messages between trainers and the activation server.

A message is one ZeroMQ message of one or two frames: a msgpack header of at most ``MAX_HEADER`` bytes, and for a BATCH
its raw bytes. A trainer says HELLO, is told the stream's shape (WELCOME), then asks with NEXT; the server answers
with batches from ``cursor`` on while credit lasts, and with END after the last one. WAIT is the server's
heartbeat: sent when nothing else was for a while. Each NEXT names a cursor: what lies before it has arrived.

To a trainer of its own host the server's WELCOME names shared memory, and batches come as SHARED: where they lie instead of
their bytes. A trainer that cannot open it says HELLO again, without a host.
"""

import reprlib
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import msgpack

from scopemill.proto.errors import WireError

VERSION = 2
NO_HELLO = "NoHello"  # the code of the error that a connection gets which has not said HELLO (again)
MAX_HEADER = 64 * 1024
MAX_NAME = 512
MAX_SENTENCE = 8 * 1024


@dataclass(frozen=True)
class StreamSpec:
    """What a stream is: its batches are a pure function of this and of the dataset's manifest."""

    dataset: str
    hooks: tuple[str, ...]
    batch_size: int  # rows
    seed: int
    shards_side_by_side: int  # K: a batch takes its rows from K shards

    @property
    def label(self) -> str:
        """A short name for metrics and messages."""
        return "+".join(self.hooks) + f"/{self.batch_size}"


@dataclass(frozen=True)
class Segment:
    """Shared memory of the server's process, as `activation_server.shared_memory` lays it out. Without slots there is none."""

    process: int
    descriptor: int  # of the memory, in that process
    token: str  # which the memory's name holds
    slots: int


NO_SEGMENT = Segment(0, 0, "", 0)


@dataclass(frozen=True)
class Hello:
    kind: ClassVar = "HELLO"
    version: int
    consumer: str
    stream: StreamSpec
    cursor: int
    stop: int  # the first batch that it will not want
    host: str  # as `activation_server.shared_memory.this_host`; empty: send the bytes


@dataclass(frozen=True)
class Welcome:
    kind: ClassVar = "WELCOME"
    version: int
    widths: tuple[int, ...]  # d of each hook of the stream
    dtype: str
    batches_per_epoch: int
    skips: bool  # whether a trainer that is too slow loses batches
    segment: Segment


@dataclass(frozen=True)
class Next:
    """Send batches from ``cursor`` on, as long as no more than ``credit`` bytes are on their way."""

    kind: ClassVar = "NEXT"
    cursor: int
    credit: int


@dataclass(frozen=True)
class Batch:
    """Header of a batch; its second frame holds, hook after hook, ``batch_size`` rows of d values."""

    kind: ClassVar = "BATCH"
    index: int


@dataclass(frozen=True)
class Shared:
    """A batch that lies in a slot of the segment, as long as the slot's generation is this one and until a NEXT beyond it."""

    kind: ClassVar = "SHARED"
    index: int
    slot: int
    generation: int


@dataclass(frozen=True)
class Wait:
    kind: ClassVar = "WAIT"
    reason: str


@dataclass(frozen=True)
class End:
    """The consumer asked for ``cursor``, which is its stop: it has had every batch."""

    kind: ClassVar = "END"
    cursor: int


@dataclass(frozen=True)
class Error:
    kind: ClassVar = "ERROR"
    code: str
    sentence: str

    @staticmethod
    def of(error: Exception) -> "Error":
        return Error(type(error).__name__, str(error)[:MAX_SENTENCE])


@dataclass(frozen=True)
class Bye:
    """The consumer has all that it wants; its place in the window is free."""

    kind: ClassVar = "BYE"
    cursor: int


Message = Hello | Welcome | Next | Batch | Shared | Wait | End | Error | Bye
_KINDS: dict[str, type] = {message.kind: message for message in Message.__args__}  # type: ignore[attr-defined]


def encode(message: Message) -> bytes:
    return msgpack.packb({"kind": message.kind, **asdict(message)}, unicode_errors="replace")


def decode(header: bytes) -> Message:
    """The message of a header frame; WireError for anything that is not exactly one."""
    if len(header) > MAX_HEADER:
        raise WireError(f"a header of {len(header)} bytes is over the limit of {MAX_HEADER}")
    try:
        body = msgpack.unpackb(header, max_str_len=MAX_HEADER, max_array_len=1024, max_map_len=64)
    except Exception as error:  # msgpack raises a dozen kinds for bad bytes
        raise WireError("a header is not msgpack") from error
    if not isinstance(body, dict) or not isinstance(body.get("kind"), str) or body["kind"] not in _KINDS:
        raise WireError("a header is not a message of this protocol")
    return _build(_KINDS[body.pop("kind")], body)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(cls).items() if name in {f.name for f in fields(cls)}}


def _build(cls: type, body: Any) -> Any:
    hints = _hints(cls)
    if not isinstance(body, dict) or body.keys() != hints.keys():
        raise WireError(f"{cls.__name__} wants the fields {', '.join(hints)}")
    return cls(**{name: _value(cls, name, hint, body[name]) for name, hint in hints.items()})


def _value(cls: type, name: str, hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return _build(hint, value)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if isinstance(value, list) and value and all(_is(item, v) for v in value):
            return tuple(value)
    elif _is(hint, value, MAX_SENTENCE if name == "sentence" else MAX_NAME):
        return value
    # reprlib, because what is nested a thousand deep has no repr
    raise WireError(f"{cls.__name__}.{name} cannot be {reprlib.repr(value)[:80]}")


def _is(hint: type, value: Any, longest: int = MAX_NAME) -> bool:
    """Exactly that type; numbers are counts, so none is negative and each fits 63 bits; names are short."""
    if type(value) is not hint:
        return False
    if hint is int:
        return 0 <= value < 2**63
    return hint is bool or len(value) <= longest
