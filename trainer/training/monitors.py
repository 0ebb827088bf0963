"""Report training rows while an SAE trains.

They go to JSON lines on a bucket, to TensorBoard, or to Weights & Biases.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from typing import Any

from scopemill.proto.errors import InputError
from scopemill.proto.layout import LIVE, SaeLayout, history_part
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.grid import MonitorName
from scopemill.trainer.training.history import Row

log = logging.getLogger(__name__)
PART_ROWS = 256  # rows per object: object stores cannot append, so the last object is rewritten
WRITE_SECONDS = 5.0  # between two writes
_STEP = "step"


class Monitor:
    """Receive each history row of one SAE. Subclass and override what you need."""

    def begin(self, rows: Sequence[Row]) -> None:
        """Receive the history before the first step.

        It is empty, or has the rows up to the resumed checkpoint.
        """

    def on_row(self, row: Row) -> None:
        """Receive a new row."""

    def on_end(self) -> None:
        """Finish: training has ended, failed, or was asked to stop."""


class Monitors:
    """Pass rows on to several monitors.

    A monitor's failure is logged once and never stops training.
    """

    def __init__(self, monitors: Iterable[Monitor] = ()):
        self._monitors = list(monitors)
        self._failed: set[int] = set()

    def begin(self, rows: Sequence[Row]) -> None:
        """Pass on the history before the first step."""
        self._each(lambda monitor: monitor.begin(rows))

    def on_row(self, row: Row) -> None:
        """Pass on a new row."""
        self._each(lambda monitor: monitor.on_row(row))

    def on_end(self) -> None:
        """Finish every monitor."""
        self._each(lambda monitor: monitor.on_end())

    def _each(self, call: Callable[[Monitor], None]) -> None:
        for monitor in self._monitors:
            try:
                call(monitor)
            except Exception as error:
                if id(monitor) not in self._failed:
                    self._failed.add(id(monitor))
                    log.warning("Monitor %s failed, training continues: %s", type(monitor).__name__, error, exc_info=True)


class Jsonl(Monitor):
    """Write rows as JSON lines to ``<place>/live/00000.jsonl`` and so on, every few seconds.

    ``place`` is any fsspec URL. A thread writes, so a slow store does not slow training. A failed write is repeated with
    the next rows.
    """

    def __init__(self, place: str, every: float = WRITE_SECONDS, clock: Callable[[], float] = time.monotonic):
        self._bucket, self._every, self._clock = Bucket(place), every, clock
        self._lines: list[str] = []
        self._saved = 0  # rows that are on the bucket
        self._next = -math.inf  # the time of the next write
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[int] | None = None

    def begin(self, rows: Sequence[Row]) -> None:
        """Replace earlier rows: those after the resumed checkpoint belong to steps that are repeated."""
        self._lines = [_to_line(row) for row in rows]
        self._saved = _write_parts(self._bucket, 0, self._lines)
        kept = {history_part(part) for part in range(-(-self._saved // PART_ROWS))}
        for name in self._bucket.names(LIVE):
            if name not in kept:
                self._bucket.remove(f"{LIVE}/{name}")

    def on_row(self, row: Row) -> None:
        """Keep the row, and start a write if one is due and none is running."""
        self._lines.append(_to_line(row))
        if self._clock() >= self._next and (self._writing is None or self._writing.done()):
            self._collect()
            self._next = self._clock() + self._every
            first = self._saved // PART_ROWS
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="jsonl-monitor")
            self._writing = self._thread.submit(_write_parts, self._bucket, first, self._lines[first * PART_ROWS :])

    def on_end(self) -> None:
        """Write the rows that are not on the bucket yet."""
        try:
            self._collect()
        finally:
            if self._thread:
                self._thread.shutdown()
                self._thread = None
            first = self._saved // PART_ROWS
            self._saved = _write_parts(self._bucket, first, self._lines[first * PART_ROWS :])

    def _collect(self) -> None:
        """Wait for the running write and count its rows; raise its error."""
        writing, self._writing = self._writing, None
        if writing:
            self._saved = writing.result()


class TensorBoard(Monitor):
    """Write rows as TensorBoard scalars into a local folder; absent: TensorBoard's own choice below ``runs/``."""

    def __init__(self, folder: str | None = None):
        self._make = _summary_writer()
        self._folder = folder
        self._writer: Any = None

    def begin(self, rows: Sequence[Row]) -> None:
        """Open the event file; scalars after the resumed checkpoint are hidden."""
        purge = rows[-1].step + 1 if rows else 0
        self._writer = self._make(self._folder, purge_step=purge, flush_secs=WRITE_SECONDS)

    def on_row(self, row: Row) -> None:
        """Write one scalar per column."""
        for name, value in asdict(row).items():
            if name != _STEP and self._writer:
                self._writer.add_scalar(name, value, row.step)

    def on_end(self) -> None:
        """Close the event file."""
        if self._writer:
            self._writer.close()


def _summary_writer() -> Callable[..., Any]:
    """Return the class that writes event files. InputError if no package has one."""
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return import_module(module).SummaryWriter
        except ImportError:
            pass
    raise InputError("The monitor tensorboard needs TensorBoard: run `pip install tensorboard`.")


class Wandb(Monitor):
    """Log rows to a Weights & Biases run.

    Keys and offline mode come from wandb's own environment variables. ``id`` names the run, so that a restarted process continues it.
    """

    def __init__(self, project: str = "scopemill", name: str | None = None, id: str | None = None, config: dict[str, Any] | None = None):
        try:
            import wandb
        except ImportError as error:
            raise InputError("The monitor wandb needs Weights & Biases: run `pip install wandb`.") from error
        self._start = lambda: wandb.init(project=project, name=name, id=id, config=config, resume="allow", reinit="create_new")
        self._run: Any = None

    def begin(self, rows: Sequence[Row]) -> None:
        """Start or continue the run."""
        self._run = self._start()

    def on_row(self, row: Row) -> None:
        """Log the row at its step."""
        if self._run:
            self._run.log({name: value for name, value in asdict(row).items() if name != _STEP}, step=row.step)

    def on_end(self) -> None:
        """Finish the run."""
        if self._run:
            self._run.finish()


def named_monitor(name: str) -> Monitor:
    """Return a monitor with its defaults.

    Raises InputError if the name is unknown, or needs more than defaults.
    """
    match name:
        case "tensorboard":
            return TensorBoard()
        case "wandb":
            return Wandb()
        case "jsonl":
            raise InputError("Monitor jsonl needs a place: pass scopemill.trainer.training.monitors.Jsonl(place) instead of its name.")
    raise InputError(f"Monitor {name!r} is not known: choose tensorboard or wandb, or pass a Monitor object.")


def sweep_monitors(names: Sequence[MonitorName], bucket: Bucket, layout: SaeLayout, config: dict[str, Any]) -> Monitors:
    """Return the monitors of one SAE of a sweep.

    They report below the SAE's folder and under its name. InputError if a monitor's package is missing, or for TensorBoard on a remote
    bucket.
    """
    made: list[Monitor] = []
    for name in names:
        if name == "jsonl":
            made.append(Jsonl(bucket.place(layout.root)))
        elif name == "tensorboard":
            if not bucket.is_local:
                raise InputError(
                    f"train.monitors: TensorBoard writes to a local folder, and the bucket {bucket.url} is remote; use jsonl or wandb."
                )
            made.append(TensorBoard(bucket.place(f"{layout.root}/tensorboard").removeprefix("file://")))
        else:
            run = hashlib.sha256(bucket.place(layout.root).encode()).hexdigest()[:16]
            made.append(Wandb(name=layout.root.removeprefix("saes/"), id=run, config=config))
    return Monitors(made)


def read_rows(place: str) -> list[Row]:
    """Return the rows that `Jsonl` has written under a place, in order."""
    bucket = Bucket(place)
    lines = [line for name in bucket.names(LIVE) for line in bucket.read(f"{LIVE}/{name}").decode().splitlines()]
    return [_from_line(line) for line in lines]


def _write_parts(bucket: Bucket, first: int, lines: Sequence[str]) -> int:
    """Write lines from the start of part ``first`` on; return the number of rows that are on the bucket."""
    for start in range(0, len(lines), PART_ROWS):
        part = first + start // PART_ROWS
        bucket.write(f"{LIVE}/{history_part(part)}", "".join(lines[start : start + PART_ROWS]).encode(), durable=False)
    return first * PART_ROWS + len(lines)


def _to_line(row: Row) -> str:
    # JSON has no NaN: an FVU of rows without variance becomes null.
    values = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in asdict(row).items()}
    return json.dumps(values) + "\n"


def _from_line(line: str) -> Row:
    values: dict[str, Any] = {name: math.nan if value is None else value for name, value in json.loads(line).items()}
    return Row(**values)
