"""Count what a corpus gave and what was left out of it."""

from collections.abc import Iterable
from typing import Any


class Tally:
    """Count files, documents and replaced characters.

    Of each kind of file that is left out, the first name is kept.
    """

    def __init__(self) -> None:
        self.files = 0  # read, or at plan time to be read
        self.documents = 0  # with text
        self.blank = 0  # documents without
        self.replaced = 0  # documents with characters that are no text, each replaced by U+FFFD
        self._left_out: dict[str, tuple[int, str]] = {}  # by kind: how many, and the first

    def leave_out(self, kind: str, names: Iterable[str]) -> None:
        """Count files of a kind that are not read, such as "hidden"."""
        for name in names:
            count, first = self._left_out.get(kind, (0, name))
            self._left_out[kind] = count + 1, first

    def leave_out_as(self, other: "Tally") -> None:
        """Count the files that another tally left out."""
        self.files += min(other.files, 0)
        for kind, (count, first) in other._left_out.items():
            before, earliest = self._left_out.get(kind, (0, first))
            self._left_out[kind] = before + count, earliest

    @property
    def left_out(self) -> str:
        """Return a phrase that names what was left out; empty if nothing was."""
        kinds = (f"{count} {kind} ({first}{', ...' if count > 1 else ''})" for kind, (count, first) in self._left_out.items())
        return ", ".join(kinds)

    def sentence(self) -> str:
        """Return what was counted, for people."""
        parts = [
            f"{self.files:,} files" if self.files else "",
            f"{self.documents:,} documents" if self.documents else "",
            f"{self.blank:,} without text" if self.blank else "",
            f"{self.replaced:,} with characters that are no text, replaced by U+FFFD" if self.replaced else "",
            f"left out: {self.left_out}" if self._left_out else "",
        ]
        return ", ".join(filter(None, parts))

    def to_record(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        left_out = {kind: {"files": count, "first": first} for kind, (count, first) in self._left_out.items()}
        counts = {"files": self.files, "documents": self.documents, "blank": self.blank, "replaced": self.replaced}
        return counts | {"left_out": left_out}
