"""Show progress: bars on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from scopemill.deploy.console import plain_console

LOG_SECONDS = 15.0  # between the lines of a log
MOST_BARS = 24  # more SAEs than this share one bar


class Onlooker:
    """Receive what a reporter shows. Subclass and override what you need."""

    def said(self, text: str) -> None:
        """Receive a line."""

    def progressed(self, phase: str, done: int, total: int) -> None:
        """Receive how far a phase is."""


class Reporter:
    """Show the progress of phases.

    ``with reporter.phase(title, {name: total})`` shows a bar per name; ``update`` moves one. The onlooker is told the same.
    """

    def __init__(self, console: Console | None = None, onlooker: Onlooker | None = None):
        self.console = console or plain_console()
        self._onlooker = onlooker or Onlooker()
        self._started = time.monotonic()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self._title = ""
        self._logged = 0.0

    def say(self, text: str) -> None:
        """Print a line after the seconds since the start."""
        self._onlooker.said(text)
        self.console.print(Text.assemble((f"{time.monotonic() - self._started:6.0f}s", "dim"), " ", text))

    def show(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table)

    @contextmanager
    def phase(self, title: str, totals: dict[str, int]) -> Iterator[None]:
        """Announce a phase, and show its bars until the block ends."""
        self.say(title)
        self._title, self._totals, self._logged = title, totals, time.monotonic()
        self._done = dict.fromkeys(totals, 0)
        self._onlooker.progressed(title, 0, sum(totals.values()))
        if not self.console.is_terminal:
            yield
            return
        name, note = (TextColumn(what, markup=False) for what in ("        {task.description}", "{task.fields[note]}"))
        columns = (name, BarColumn(24), MofNCompleteColumn(), note)
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as self._bars:
            names = {"all": sum(totals.values())} if len(totals) > MOST_BARS else totals
            self._tasks = {name: self._bars.add_task(name, total=total, note="") for name, total in names.items()}
            yield
        self._bars = None

    def update(self, name: str, done: int, note: str = "") -> None:
        """Move a bar to ``done``.

        In a log, print a line if the last one is some time ago.
        """
        self._done[name] = done
        self._onlooker.progressed(self._title, sum(self._done.values()), sum(self._totals.values()))
        if self._bars:
            if name in self._tasks:
                self._bars.update(self._tasks[name], completed=done, note=note)
            else:
                self._bars.update(self._tasks["all"], completed=sum(self._done.values()))
        elif time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            self.say(f"{self._title}: {sum(self._done.values()):,} of {sum(self._totals.values()):,}")
