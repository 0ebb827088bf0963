"""Start drivers: as jobs of a Ray cluster, or as processes of this machine.

These outlive the service.
"""

import asyncio
import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scopemill.deploy.plan.submission import Submission, read_submission
from scopemill.deploy.studio.helper import Helper
from scopemill.proto.errors import InputError, MissingObject, ScopemillError
from scopemill.proto.layout import SweepLayout
from scopemill.proto.runtime import replace_file, runtime_folder
from scopemill.proto.storage.bucket import Bucket

log = logging.getLogger(__name__)
BEGIN_SECONDS = 180.0  # for a job to begin
END_SECONDS = 30.0  # for a process to end after its work
FOLLOW_SECONDS = 3.0  # between questions to a cluster about a job that has not taken the lease yet


@dataclass
class _Launch:
    process: subprocess.Popen[bytes] | None  # None: a job of a cluster
    log: Path | None
    at: float
    problem: str | None = None
    held: bool = False  # it was seen at work, with the sweep's lease


class Launcher:
    """Start the drivers of one bucket's sweeps, and know what became of them."""

    def __init__(self, bucket: Bucket, address: str | None, installed: bool, planner: Helper):
        self._bucket, self._address, self._installed, self._planner = bucket, address, installed, planner
        self._launches: dict[str, _Launch] = {}
        self._following: set[asyncio.Task[None]] = set()

    @property
    def who(self) -> str:
        """Return who drives a sweep that is started here, in words."""
        return f"a job on {self._address}" if self._address else "a process on the service's machine"

    async def start(self, sweep: str, command: str) -> None:
        """Start a command, ``sweep`` or ``evaluate``, on a sweep's file whose lease nobody holds.

        Does nothing while one that was started here has not taken the lease yet: it reads the bucket after that.
        """
        known = self._launches.get(sweep)
        if known and known.process and known.process.poll() is None:
            if not known.held:
                return
            with suppress(subprocess.TimeoutExpired):  # it has given the lease back, and will look at nothing any more
                await asyncio.to_thread(known.process.wait, END_SECONDS)
        submission = await asyncio.to_thread(self._submission, sweep)
        if self._address:
            given = submission.sweep | {"bucket": self._bucket.url}
            asked: dict[str, Any] = {"config": given, "address": self._address, "command": command, "installed": self._installed}
            await self._planner.call("submit", **asked, waiting=known is not None)
            self._launches[sweep] = launch = _Launch(None, None, time.monotonic())
            task = asyncio.create_task(self._follow(sweep, launch, self._address))
            self._following.add(task)
            task.add_done_callback(self._following.discard)
        else:
            self._launches[sweep] = await asyncio.to_thread(self._process, sweep, submission, command)

    def note(self, sweep: str, runs: bool) -> str | None:
        """Return what became of a driver that was started here.

        Returns None where the bucket tells it.
        """
        launch = self._launches.get(sweep)
        if launch is None:
            return None
        if runs:
            launch.problem, launch.held = None, True
            if launch.process is None:
                del self._launches[sweep]
            return None
        if launch.process is None:
            waited = time.monotonic() - launch.at
            if launch.problem:
                return launch.problem
            if waited < BEGIN_SECONDS:
                return f"its driver was submitted to {self._address} and is about to begin"
            return f"its driver was submitted to {self._address} and has not begun: scopemill logs shows its log"
        code = launch.process.poll()
        if code is None:
            return "its driver is starting"
        if code and launch.problem is None:
            launch.problem = _last_words(_read(launch.log)) or f"its driver ended with exit code {code}: {launch.log} tells more"
        return launch.problem

    def close(self) -> None:
        """Ask the cluster no more; what was started goes on."""
        for task in self._following:
            task.cancel()

    async def _follow(self, sweep: str, launch: _Launch, address: str) -> None:
        """Find out what became of a job that ends before it takes the lease: nothing on the bucket tells it."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            if self._launches.get(sweep) is not launch:
                return
            try:
                ending = await self._planner.call("ending", sweep=sweep, address=address)
            except ScopemillError as error:
                log.warning("the job of sweep %s was not asked for: %s", sweep, error)
                continue
            if ending and ending["succeeded"]:
                self._launches.pop(sweep, None)
            elif ending:
                launch.problem = _last_words(ending["log"]) or f"its job on {address} failed: scopemill logs shows its log"
                return

    def _process(self, sweep: str, submission: Submission, command: str) -> _Launch:
        folder = runtime_folder() / "studio"
        folder.mkdir(mode=0o700, exist_ok=True)
        file, said = folder / f"{sweep}.yaml", folder / f"{sweep}.log"
        replace_file(file, yaml.safe_dump(submission.sweep, sort_keys=False))
        where = submission.folder if Path(submission.folder).is_dir() else os.getcwd()
        with open(said, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "scopemill.deploy", command, str(file)],
                cwd=where, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return _Launch(process, said, time.monotonic())

    def _submission(self, sweep: str) -> Submission:
        if submission := read_submission(self._bucket, sweep):
            return submission
        try:  # of a run of an earlier version
            data = yaml.safe_load(self._bucket.read(SweepLayout(sweep).config))
        except (MissingObject, yaml.YAMLError) as error:
            raise InputError(f"the bucket has no sweep file of sweep {sweep}: start it once with scopemill sweep and its file") from error
        if not isinstance(data, dict):
            raise ScopemillError(
                f"{self._bucket.place(SweepLayout(sweep).config)} is no sweep file: start it with scopemill sweep and its file"
            )
        return Submission(sweep=data, folder=os.getcwd())


def _last_words(text: str) -> str:
    """Return the sentence with which a driver ended, of its log."""
    lines = text.splitlines()
    at = max((number for number, line in enumerate(lines) if line.startswith("error ")), default=None)
    return "\n".join(lines[at:]).removeprefix("error ").strip() if at is not None else (lines[-1] if lines else "")


def _read(log: Path | None) -> str:
    try:
        return log.read_text(errors="replace") if log else ""
    except OSError:
        return ""
