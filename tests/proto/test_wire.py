"""Messages arrive as they were sent, and nothing that a stranger sends does more than raise WireError."""

import random
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopemill.proto import wire
from scopemill.proto.errors import StorageError, WireError
from scopemill.proto.wire import (
    Batch,
    Bye,
    End,
    Error,
    Hello,
    Message,
    Next,
    Segment,
    Shared,
    StreamSpec,
    Wait,
    Welcome,
    decode,
    encode,
)

counts = st.integers(0, 2**63 - 1)
names = st.text(max_size=40)
hooks = st.lists(names, min_size=1, max_size=6).map(tuple)
streams = st.builds(StreamSpec, names, hooks, counts, counts, counts)
segments = st.builds(Segment, counts, counts, names, counts)
MESSAGES = {
    Hello: st.builds(Hello, counts, names, streams, counts, counts, names),
    Welcome: st.builds(Welcome, counts, st.lists(counts, min_size=1, max_size=20).map(tuple), names, counts, st.booleans(), segments),
    Next: st.builds(Next, counts, counts),
    Batch: st.builds(Batch, counts),
    Shared: st.builds(Shared, counts, counts, counts),
    Wait: st.builds(Wait, names),
    End: st.builds(End, counts),
    Error: st.builds(Error, names, st.text(max_size=2000)),
    Bye: st.builds(Bye, counts),
}
STREAM = StreamSpec("demo", ("blocks.0.hook_resid_post", "blocks.3.hook_mlp_out"), 4096, 0, 4)
EXAMPLES = [
    Hello(1, "sae-7", STREAM, 12, 400, "a boot"),
    Welcome(1, (192, 192), "bfloat16", 97, True, Segment(4242, 17, "5eed", 80)),
    Next(3, 2**26),
    Batch(2**40),
    Shared(2**40, 3, 12),
    Wait("reading ahead"),
    End(400),
    Error("Conflict", "The stream is another one."),
    Bye(17),
]
HOSTILE_VALUES = [
    None, True, -1, 2**63, 2**64 - 1, 1.5, float("nan"), 7, [64], [], [-1], [True], ["a", 1], [[]], {}, {"kind": "BYE"},
    "", "BYE", "bfloat16", "x" * (wire.MAX_SENTENCE + 1), "\ud800", ["blocks.0.hook_resid_post"], b"demo",
    msgpack.ExtType(5, b"x"), msgpack.Timestamp(1),
]  # fmt: skip


def test_every_kind_of_message_is_tried_here():
    assert set(MESSAGES) == set(get_args(Message)) == {type(message) for message in EXAMPLES}


@settings(deadline=None, max_examples=150)
@given(st.one_of(*MESSAGES.values()))
def test_a_message_arrives_as_it_was_sent(message):
    header = encode(message)
    assert len(header) <= wire.MAX_HEADER
    assert decode(header) == message
    assert type(decode(header)) is type(message)


def test_a_header_is_plain_msgpack_that_names_its_kind():
    assert msgpack.unpackb(encode(Next(3, 64))) == {"kind": "NEXT", "cursor": 3, "credit": 64}
    assert msgpack.unpackb(encode(EXAMPLES[0]))["stream"]["hooks"] == list(STREAM.hooks)


def test_text_that_utf_8_cannot_hold_is_sent_with_a_question_mark():
    assert decode(encode(Wait("half a pair: \ud800"))) == Wait("half a pair: ?")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_message(data):
    assert outcome(data) is None


def test_twenty_thousand_random_headers_raise_nothing_but_wire_errors():
    generator = random.Random(20_000)
    starts = [b"", b"\x81\xa4kind", b"\x82\xa4kind\xa3BYE\xa6cursor", b"\x83\xa4kind\xa4NEXT\xa6cursor", b"\xdf", b"\xdd\xff\xff", b"\xc9"]
    for _ in range(20_000):
        outcome(generator.choice(starts) + generator.randbytes(generator.randrange(64)))


def test_twenty_thousand_damaged_messages_are_refused_or_are_whole_messages():
    generator = random.Random(1)
    headers = [encode(message) for message in EXAMPLES]
    results = [outcome(damaged(headers, generator)) for _ in range(20_000)]
    assert results.count(None) > 10_000
    assert len(results) - results.count(None) > 500, "some damage is not seen as such: those are the ones to look at"


def test_a_hostile_value_in_any_field_is_refused_or_makes_a_whole_message():
    generator = random.Random(2)
    refused = 0
    for _ in range(5_000):
        body = msgpack.unpackb(encode(generator.choice(EXAMPLES)))
        target = body["stream"] if "stream" in body and generator.random() < 0.5 else body
        target[generator.choice([*target, "extra"])] = generator.choice(HOSTILE_VALUES)
        refused += outcome(msgpack.packb(body, unicode_errors="surrogatepass")) is None
    assert 4_000 < refused < 5_000


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: message.kind)
def test_a_message_that_lacks_a_field_or_has_one_more_is_refused(message):
    body = msgpack.unpackb(encode(message))
    for name in body:
        with pytest.raises(WireError):
            decode(msgpack.packb({key: value for key, value in body.items() if key != name}))
    with pytest.raises(WireError, match="needs exactly the fields"):
        decode(msgpack.packb({**body, "more": 1}))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: message.kind)
def test_a_message_cut_short_or_followed_by_bytes_is_refused(message):
    header = encode(message)
    for end in range(len(header)):
        with pytest.raises(WireError):
            decode(header[:end])
    with pytest.raises(WireError):
        decode(header + b"\x00")


@pytest.mark.parametrize("kind", ["HALLO", "hello", "", "StreamSpec", "__class__"])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(WireError, match="not a message of this protocol"):
        decode(msgpack.packb({"kind": kind, "cursor": 1}))


def test_a_count_is_a_whole_number_that_fits_63_bits():
    assert decode(encode(Bye(0))) == Bye(0)
    assert decode(encode(Bye(2**63 - 1))) == Bye(2**63 - 1)
    for value in (-1, 2**63, 1.0, True, "1", None):
        with pytest.raises(WireError, match=r"Bye\.cursor cannot be"):
            decode(msgpack.packb({"kind": "BYE", "cursor": value}))


def test_a_name_may_be_so_long_and_no_longer():
    assert decode(encode(Wait("x" * wire.MAX_NAME))) == Wait("x" * wire.MAX_NAME)
    long = "x" * (wire.MAX_NAME + 1)
    hello = EXAMPLES[0]
    in_the_stream = replace(hello, stream=replace(STREAM, hooks=(long,)))
    for message in (Wait(long), Error(long, ""), replace(hello, consumer=long), in_the_stream):
        with pytest.raises(WireError):
            decode(encode(message))


def test_a_stream_of_no_hooks_or_of_too_many_is_refused():
    for some in ((), ("h",) * 1025):
        with pytest.raises(WireError):
            decode(encode(replace(EXAMPLES[0], stream=replace(STREAM, hooks=some))))


def test_a_header_over_the_limit_is_refused_before_it_is_parsed():
    with pytest.raises(WireError, match=f"{wire.MAX_HEADER + 1} bytes is over the limit of {wire.MAX_HEADER}"):
        decode(b"\xc1" * (wire.MAX_HEADER + 1))


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01"])
def test_what_is_nested_very_deep_is_refused(opening):
    for depth in (10, 400, 600, 1100, 20_000):
        inner = opening * depth + b"\xc0"
        assert outcome(inner[: wire.MAX_HEADER]) is None
        assert outcome(b"\x82\xa4kind\xa4WAIT\xa6reason" + inner[: wire.MAX_HEADER - 100]) is None


def test_a_small_header_cannot_announce_a_large_array_or_text():
    for announced in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        assert outcome(b"\x82\xa4kind\xa4WAIT\xa6reason" + announced) is None


def test_an_error_of_ours_travels_under_its_name_and_is_cut_to_a_sentence_that_fits():
    assert Error.of(StorageError("the bucket is full")) == Error("StorageError", "the bucket is full")
    for text in ("x", "\N{PILE OF POO}", "\ud800"):
        arrived = decode(encode(Error.of(StorageError(text * 1_000_000))))
        assert len(arrived.sentence) == wire.MAX_SENTENCE


def test_the_label_of_a_stream_names_its_hooks_and_its_batch_size():
    assert STREAM.label == "blocks.0.hook_resid_post+blocks.3.hook_mlp_out/4096"


def outcome(header: bytes) -> Message | None:
    """The message of a header, checked to be a whole one; None if it was refused with a short sentence."""
    try:
        message = decode(header)
    except WireError as error:
        sentence = str(error)
        assert sentence.isprintable() and len(sentence) < 300
        return None
    assert isinstance(message, Message)
    check_fields(message)
    assert decode(encode(message)) == message
    return message


def check_fields(message: Any) -> None:
    """Every field is of the type that its class states, within the limits that the protocol states."""
    for field in fields(message):
        value = getattr(message, field.name)
        for item in value if isinstance(value, tuple) and value else [value]:
            if is_dataclass(item):
                check_fields(item)
            elif type(item) is str:
                assert len(item) <= (wire.MAX_SENTENCE if field.name == "sentence" else wire.MAX_NAME)
            elif type(item) is not bool:
                assert type(item) is int and 0 <= item < 2**63
        shape = "tuple" if isinstance(value, tuple) else type(value).__name__
        assert str(getattr(field.type, "__name__", field.type)).startswith(shape)


def damaged(headers: list[bytes], generator: random.Random) -> bytes:
    """A valid header after one to three accidents."""
    data = bytearray(generator.choice(headers))
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(data) + 1)
        match generator.randrange(5):
            case 0:
                data[at : at + 1] = generator.randbytes(1)
            case 1:
                del data[at : at + generator.randint(1, 4)]
            case 2:
                data[at:at] = generator.randbytes(generator.randint(1, 4))
            case 3:
                data[at : at + 1] = bytes([data[at] ^ 1 << generator.randrange(8)]) if at < len(data) else b""
            case 4:
                other = generator.choice(headers)
                data[at:] = other[generator.randrange(len(other)) :]
    return bytes(data)
