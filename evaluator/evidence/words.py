"""Tell the bytes of each token of a tokenizer."""

import re
from typing import Any

from scopemill.proto.vocabulary import Vocabulary

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # SentencePiece's mark of a space


def vocabulary_of(tokenizer: Any, special: tuple[int, ...], untrained: frozenset[int] = frozenset()) -> Vocabulary:
    """Return the vocabulary of a Hugging Face tokenizer."""
    size = len(tokenizer)
    names = tokenizer.convert_ids_to_tokens(list(range(size)))
    added = set(tokenizer.added_tokens_decoder)
    alphabet = _byte_alphabet()
    plain = [name for id, name in enumerate(names) if id not in added and name is not None]
    # Byte-level tokenizers write every byte as one letter; a space never occurs.
    if plain and all(letter in alphabet for name in plain for letter in name):
        kept = [_text(name) if id in added else bytes(alphabet[letter] for letter in name or "") for id, name in enumerate(names)]
    elif any(name.startswith(_SPACE) for name in plain):
        kept = [_text(name) if id in added else _piece(name or "") for id, name in enumerate(names)]
    else:
        kept = [_decoded(tokenizer, id, name) for id, name in enumerate(names)]
    return Vocabulary(kept, frozenset(special), frozenset(id for id in untrained if id < size))


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each letter of byte-level BPE: printable bytes are themselves, others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _text(name: str | None) -> bytes:
    return (name or "").encode()


def _piece(name: str) -> bytes:
    if match := _BYTE.fullmatch(name):
        return bytes([int(match[1], 16)])
    return name.replace(_SPACE, " ").encode()


def _decoded(tokenizer: Any, id: int, name: str | None) -> bytes:
    """Return what a token adds to a text: WordPiece joins tokens that open with ## to the word before."""
    if name is not None and name.startswith("##"):
        return name[2:].encode()
    text = tokenizer.decode([id])
    return (text if text.startswith((" ", "\n")) or not text else f" {text}").encode()
