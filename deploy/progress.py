"""Progress for people: bars on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LOG_SECONDS = 15.0  # between lines where there is no terminal
MOST_BARS = 24  # more SAEs than fit on a screen share one bar


class Reporter:
    """``with reporter.phase(title, {name: total})`` shows a bar per name; ``update`` moves one."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._started = time.monotonic()
        self._bars: Progress | None = None
        self._tasks: dict[str, object] = {}
        self._done: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self._title = ""
        self._logged = 0.0

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self._started:6.0f}s[/dim] {text}", highlight=False)

    def show(self, table: Table) -> None:
        self.console.print(table)

    @contextmanager
    def phase(self, title: str, totals: dict[str, int]) -> Iterator[None]:
        self.say(title)
        self._title, self._totals, self._logged = title, totals, time.monotonic()
        self._done = dict.fromkeys(totals, 0)
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("        {task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as self._bars:
            names = {"all": sum(totals.values())} if len(totals) > MOST_BARS else totals
            self._tasks = {name: self._bars.add_task(name, total=total, note="") for name, total in names.items()}
            yield
        self._bars = None

    def update(self, name: str, done: int, note: str = "") -> None:
        self._done[name] = done
        if self._bars:
            if name in self._tasks:
                self._bars.update(self._tasks[name], completed=done, note=note)  # type: ignore[arg-type]
            else:
                self._bars.update(self._tasks["all"], completed=sum(self._done.values()))  # type: ignore[arg-type]
        elif time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            self.say(f"{self._title}: {sum(self._done.values()):,} of {sum(self._totals.values()):,}")
