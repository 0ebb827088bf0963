"""Unpack compressed files, and tell text from other content.

A file's content decides, its ending only where the content says nothing: many files have the wrong ending, or none.
"""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any, cast

HEAD_BYTES = 2**13  # of a file, by which its content is judged
MOST_FOREIGN = 0.3  # share of characters that are not UTF-8 in a file of text; text in another encoding of Europe has fewer

_MAGIC = {b"\x1f\x8b\x08": "gz", b"\x28\xb5\x2f\xfd": "zst", b"\xfd7zXZ\x00": "xz", b"\x04\x22\x4d\x18": "lz4"}
_BZIP2 = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # a block, or the end of an empty file, after "BZh" and a digit
_NO_TEXT = (b"%PDF-", b"PK\x03\x04", b"PAR1", b"GIF8", b"\x89PNG", b"\xff\xd8\xff")


def _arrow(codec: str) -> Callable[[Any], Any]:
    """Return an opener of Arrow's, for what Python itself cannot unpack."""

    def opener(file: Any) -> Any:
        import pyarrow  # only where such a file is met

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), codec)

    return opener


_OPENERS: dict[str, Callable[[Any], Any]] = {
    "gz": lambda file: gzip.GzipFile(fileobj=file),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zst": _arrow("zstd"),
    "lz4": _arrow("lz4"),
}
ENDINGS = tuple(f".{codec}" for codec in _OPENERS)


class _Replayed(io.RawIOBase):
    """Read a stream from its start again, whose head is known."""

    def __init__(self, head: bytes, rest: IO[bytes]):
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def unpacked(file: IO[bytes], name: str) -> tuple[IO[bytes], bytes]:
    """Return a file's unpacked content as a stream, and the content's first bytes.

    Errors of the archive come while it is read.
    """
    head = _first_bytes(file)
    stream = _replayed(head, file)
    ending = next((codec for codec in _OPENERS if name.lower().endswith(f".{codec}")), None)
    codec = _codec_of(head) or ending
    if not head or codec is None:
        return stream, head
    content = _OPENERS[codec](stream)
    head = _first_bytes(content)
    return _replayed(head, content), head


def is_text(head: bytes) -> bool:
    """Return whether a file with this head holds text: UTF-8, but for a few bytes."""
    if b"\0" in head or head.startswith(_NO_TEXT) or _codec_of(head):
        return False
    text = head.decode("utf-8", errors="replace")
    return text.count("\ufffd") - head.count("\ufffd".encode()) <= max(1, MOST_FOREIGN * len(text))


def _codec_of(head: bytes) -> str | None:
    """Return what a file is compressed with, by its first bytes; None if it is not."""
    if head[:3] == b"BZh" and head[4:10] in _BZIP2:
        return "bz2"
    return next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)


def _first_bytes(stream: IO[bytes]) -> bytes:
    """Read up to ``HEAD_BYTES`` bytes, in as many reads as the stream needs."""
    parts, left = [], HEAD_BYTES
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _replayed(head: bytes, rest: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(_Replayed(head, rest), buffer_size=2**17))
