"""Drivers that the studio starts: one at a time for a sweep, and none is lost between two."""

import asyncio
import os
import time

import pytest

from scopemill.deploy.plan.submission import Submission
from scopemill.deploy.studio import launcher
from scopemill.deploy.studio.launcher import Launcher
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.checksums import checksummed_record

SECONDS = 1.0


@pytest.fixture
def started(bucket, tmp_path, monkeypatch):
    """A launcher whose drivers only note that they began, and the file with a line for each."""
    notes, program = tmp_path / "began", tmp_path / "driver"
    program.write_text(f"#!/bin/sh\necho began >> {notes}\nsleep {SECONDS}\n")
    program.chmod(0o700)
    monkeypatch.setattr(launcher.sys, "executable", str(program))
    record = Submission(sweep={"name": "one"}, folder=os.getcwd())
    bucket.write(SweepLayout("one").submission, checksummed_record(record.model_dump()))
    yield Launcher(bucket, None, False, planner=None), notes
    time.sleep(SECONDS)  # for the last driver to end


def test_a_driver_that_is_about_to_begin_is_not_started_again(started):
    launcher, notes = started
    asyncio.run(launcher.start("one", "sweep"))
    asyncio.run(launcher.start("one", "sweep"))
    wait_for(notes, 1)


def test_a_driver_that_has_done_its_work_is_followed_by_another(started):
    launcher, notes = started
    asyncio.run(launcher.start("one", "sweep"))
    assert launcher.note("one", runs=True) is None  # it was seen with the lease, which it has given back since
    asyncio.run(launcher.start("one", "sweep"))
    wait_for(notes, 2)


def wait_for(notes, drivers: int) -> None:
    deadline = time.monotonic() + 20
    while not notes.exists() or notes.read_text().count("began") < drivers:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)
    assert notes.read_text().count("began") == drivers
