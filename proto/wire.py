"""Define the messages between trainers and the activation server, and encode and decode their headers.

A message has one or two ZeroMQ frames: a msgpack header of at most ``MAX_HEADER`` bytes and, for a BATCH, its raw bytes.
A trainer sends HELLO and gets WELCOME with the stream's shape. Each NEXT acknowledges the batches before its cursor, and
asks for batches from the cursor on. The server sends batches while credit lasts, and END after the last one. WAIT is the
server's heartbeat, sent when the server has sent nothing else for a while.

To a trainer on the server's host, WELCOME names shared memory: then batches come as SHARED, which names the slot instead
of carrying the bytes. A trainer that cannot open the memory sends HELLO again, with an empty host.
"""

import reprlib
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import msgpack  # type: ignore[import-untyped]

from scopemill.proto.errors import WireError

VERSION = 2
NO_HELLO = "NoHello"  # error code for a connection without HELLO, such as a new connection after a break
MAX_HEADER = 64 * 1024
MAX_NAME = 512
MAX_SENTENCE = 8 * 1024


@dataclass(frozen=True)
class StreamSpec:
    """Identify a stream. These fields and the manifest determine every batch."""

    dataset: str
    hooks: tuple[str, ...]
    batch_size: int  # rows
    seed: int
    shards_side_by_side: int  # K: a batch takes its rows from K shards

    @property
    def label(self) -> str:
        """Return a short name for metrics and messages."""
        return "+".join(self.hooks) + f"/{self.batch_size}"


@dataclass(frozen=True)
class Segment:
    """Identify shared memory of the server's process (`activation_server.shared_memory`); 0 slots mean none."""

    process: int
    descriptor: int  # file descriptor of the memory in that process
    token: str  # part of the memory's name, checked before use
    slots: int


NO_SEGMENT = Segment(0, 0, "", 0)


@dataclass(frozen=True)
class Hello:
    """Join a stream at ``cursor``."""

    kind: ClassVar = "HELLO"
    version: int
    consumer: str
    stream: StreamSpec
    cursor: int
    stop: int  # the trainer wants batches before this one
    host: str  # `activation_server.shared_memory.this_host`; empty: send batches as bytes


@dataclass(frozen=True)
class Welcome:
    """Accept a HELLO and describe the stream's batches."""

    kind: ClassVar = "WELCOME"
    version: int
    widths: tuple[int, ...]  # d of each hook of the stream
    dtype: str
    batches_per_epoch: int
    skips: bool  # True if a trainer that is too slow loses batches
    segment: Segment


@dataclass(frozen=True)
class Next:
    """Acknowledge batches before ``cursor``, and ask for more within ``credit`` unacknowledged bytes."""

    kind: ClassVar = "NEXT"
    cursor: int
    credit: int


@dataclass(frozen=True)
class Batch:
    """Announce a batch; the second frame holds, hook after hook, ``batch_size`` rows of d values."""

    kind: ClassVar = "BATCH"
    index: int


@dataclass(frozen=True)
class Shared:
    """Lend a batch in a slot of the segment until a NEXT acknowledges the batch.

    The slot holds another batch if its generation differs.
    """

    kind: ClassVar = "SHARED"
    index: int
    slot: int
    generation: int


@dataclass(frozen=True)
class Wait:
    """Tell a waiting trainer that the server is alive."""

    kind: ClassVar = "WAIT"
    reason: str


@dataclass(frozen=True)
class End:
    """Tell a consumer that asked from its stop on that it has every batch."""

    kind: ClassVar = "END"
    cursor: int


@dataclass(frozen=True)
class Error:
    """Answer a message with an error; ``code`` is the name of its class."""

    kind: ClassVar = "ERROR"
    code: str
    sentence: str

    @staticmethod
    def of(error: Exception) -> "Error":
        """Return the message for an exception, its sentence cut to ``MAX_SENTENCE``."""
        return Error(type(error).__name__, str(error)[:MAX_SENTENCE])


@dataclass(frozen=True)
class Bye:
    """Leave the stream and free the consumer's place in the window."""

    kind: ClassVar = "BYE"
    cursor: int


Message = Hello | Welcome | Next | Batch | Shared | Wait | End | Error | Bye
_KINDS: dict[str, type[Message]] = {message.kind: message for message in get_args(Message)}


def encode(message: Message) -> bytes:
    """Encode a message as its header frame."""
    header: bytes = msgpack.packb({"kind": message.kind, **asdict(message)}, unicode_errors="replace")
    return header


def decode(header: bytes) -> Message:
    """Decode a header frame; raise WireError for anything but exactly one message."""
    if len(header) > MAX_HEADER:
        raise WireError(f"a header of {len(header)} bytes is over the limit of {MAX_HEADER} bytes")
    try:
        body = msgpack.unpackb(header, max_str_len=MAX_HEADER, max_array_len=1024, max_map_len=64)
    except Exception as error:  # msgpack raises many kinds of errors for bad bytes
        raise WireError("a header is not msgpack") from error
    if not isinstance(body, dict) or not isinstance(body.get("kind"), str) or body["kind"] not in _KINDS:
        raise WireError("a header is not a message of this protocol")
    message: Message = _build(_KINDS[body.pop("kind")], body)
    return message


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the type of each field, without class variables."""
    return {name: hint for name, hint in get_type_hints(cls).items() if name in {f.name for f in fields(cls)}}


def _build(cls: type, body: Any) -> Any:
    hints = _hints(cls)
    if not isinstance(body, dict) or body.keys() != hints.keys():
        raise WireError(f"{cls.__name__} needs exactly the fields {', '.join(hints)}")
    return cls(**{name: _value(cls, name, hint, body[name]) for name, hint in hints.items()})


def _value(cls: type, name: str, hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return _build(hint, value)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if isinstance(value, list) and value and all(_is(item, v) for v in value):
            return tuple(value)
    elif _is(hint, value, MAX_SENTENCE if name == "sentence" else MAX_NAME):
        return value
    # reprlib, because repr fails for values nested a thousand deep
    raise WireError(f"{cls.__name__}.{name} cannot be {reprlib.repr(value)[:80]}")


def _is(hint: type, value: Any, longest: int = MAX_NAME) -> bool:
    """Return True for exactly that type: a bool, a count below 2**63, or short text."""
    if type(value) is not hint:
        return False
    if isinstance(value, int):  # a bool is 0 or 1
        return 0 <= value < 2**63
    return isinstance(value, str) and len(value) <= longest
