"""Make the console that commands print on: text is printed as it is."""

import sys
from typing import IO

from rich.console import Console

LOG_WIDTH = 140  # a log is not a narrow terminal


def plain_console(file: IO[str] | None = None, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console without markup, emoji codes and highlighting.

    Most of what is printed is not ours: errors, paths and names. In markup ``[word]`` would vanish, and ``[/word]`` raise an error.
    Styles are given as `Text` or as a ``style``.
    """
    to_terminal = file is None and (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        file=file, stderr=stderr, width=width or (None if to_terminal else LOG_WIDTH), markup=False, emoji=False, highlight=False
    )
