"""Turn token ids into text that reads as the document did.

Many tokenizers split characters over tokens, or merge spaces into them, so a token alone has no text. Each token is kept as its
bytes: the bytes of a context joined are its text.
"""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

UNKNOWN = b"\xef\xbf\xbd"  # U+FFFD, for an id that the tokenizer does not know


@dataclass(frozen=True)
class Vocabulary:
    """Hold the bytes of each token, and which tokens are special or were never trained."""

    tokens: Sequence[bytes]  # by id
    special: frozenset[int] = frozenset()  # BOS, EOS and PAD
    untrained: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.tokens)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return a piece of text for each id; joined, the pieces are the text.

        A character that is split over tokens belongs to the token that completes it.
        """
        ids = list(ids)
        whole = [self._whole[id] for id in ids]
        if None not in whole:  # almost every text: no character is split
            return [piece for piece in whole if piece is not None]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [decoder.decode(self._bytes(id)) for id in ids]
        if pieces:
            pieces[-1] += decoder.decode(b"", final=True)
        return pieces

    def text(self, id: int) -> str:
        """Return the text of one token; bytes that are no character are written as ``<0xE2>``."""
        data = self._bytes(id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    @cached_property
    def _whole(self) -> "_Whole":
        return _Whole(self)

    def _bytes(self, id: int) -> bytes:
        return self.tokens[id] if 0 <= id < len(self.tokens) else UNKNOWN


class _Whole(dict[int, str | None]):
    """Remember the text of each token that was asked for; None where its bytes end inside a character."""

    def __init__(self, words: Vocabulary):
        self._words = words

    def __missing__(self, id: int) -> str | None:
        try:
            self[id] = self._words._bytes(id).decode()
        except UnicodeDecodeError:
            self[id] = None
        return self[id]
