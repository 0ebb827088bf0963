"""Sweeps as Ray jobs: submitted, followed and stopped from anywhere that reaches a cluster's dashboard."""

import asyncio
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.proto.errors import InputError, ScopemillError

ROOMS = ("proto", "harvester", "activation_server", "trainer", "evaluator", "deploy")
STOP_SECONDS = 90  # for trainers to checkpoint and the driver to end; Ray would kill it after 3 if not told
POLL_SECONDS = 0.5
_SWEEP = "scopemill_sweep"  # the key of a job's metadata that names its sweep
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)


class Jobs:
    """The sweeps of one cluster. InputError if the cluster cannot be used, or knows no such sweep.

    Ray takes its token from ``RAY_AUTH_TOKEN`` or the usual file, where ``RAY_AUTH_MODE`` is token.
    """

    def __init__(self, address: str):
        self._address = address
        with self._errors():
            self._client = JobSubmissionClient(address)
        logging.getLogger("ray").setLevel(logging.ERROR)  # it would tell of uploads and of sockets that it closes

    def submit(self, config: SweepConfig, environment: dict[str, str], installed: bool) -> None:
        """Start a sweep. ``installed``: the cluster's image has Scopemill; else this very code travels along.

        InputError if the sweep is running already. What an earlier submission committed is continued.
        """
        earlier = self._submissions(config.name)
        if earlier and not earlier[-1].status.is_terminal():
            raise InputError(f"sweep {config.name} is running on {self._address} already: stop it, or follow it with scopemill logs")
        with self._errors(), tempfile.TemporaryDirectory() as folder:
            packed = pack(Path(folder), config, installed)
            self._client.submit_job(
                entrypoint="python -m scopemill.deploy sweep sweep.yaml",
                submission_id=f"{config.name}-{len(earlier) + 1}",  # of two who submit at once, Ray refuses one
                metadata={_SWEEP: config.name},
                runtime_env=packed | {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | environment},
            )

    def follow(self, sweep: str, write: Callable[[str], object]) -> None:
        """Pass on what the sweep says until it ends. ScopemillError unless it ends well."""
        job = self._newest(sweep)

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(job.submission_id):
                write(lines)

        with self._errors():
            asyncio.run(tail())
        status = self._ended(sweep)
        if status != JobStatus.SUCCEEDED:
            raise ScopemillError(f"sweep {sweep} on {self._address} {status.lower()}; its log says why")

    def logs(self, sweep: str) -> str:
        job = self._newest(sweep)
        with self._errors():
            return self._client.get_job_logs(job.submission_id)

    def stop(self, sweep: str) -> bool:
        """Let a sweep commit what it has and end; returns whether it was running."""
        job = self._newest(sweep)
        if job.status.is_terminal():
            return False
        with self._errors():
            self._client.stop_job(job.submission_id)
        self._ended(sweep)
        return True

    def _ended(self, sweep: str) -> JobStatus:
        deadline = time.monotonic() + 2 * STOP_SECONDS
        while not (job := self._newest(sweep)).status.is_terminal():
            if time.monotonic() > deadline:
                raise ScopemillError(f"sweep {sweep} on {self._address} has not ended within {2 * STOP_SECONDS} s; look at its log")
            time.sleep(POLL_SECONDS)
        return job.status

    def _newest(self, sweep: str) -> JobDetails:
        submissions = self._submissions(sweep)
        if not submissions:
            raise InputError(f"sweep {sweep} was not submitted to {self._address}")
        return submissions[-1]

    def _submissions(self, sweep: str) -> list[JobDetails]:
        """All there were of a sweep, the newest last."""
        with self._errors():
            jobs = [job for job in self._client.list_jobs() if (job.metadata or {}).get(_SWEEP) == sweep]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, RayError, aiohttp.ClientError) as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(f"the cluster at {self._address} cannot be used: {reason}") from error


def pack(folder: Path, config: SweepConfig, installed: bool) -> dict[str, Any]:
    """Put into a folder what travels, and return it as Ray's ``runtime_env`` takes it: the sweep file and, unless it is installed there,
    the package as it is here.

    The package is apart from the sweep: nodes keep it, compiled, until its code changes. Its metadata goes along, so that it
    knows its version.
    """
    job, package = folder / "job", folder / "scopemill"
    job.mkdir()
    (job / "sweep.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    if installed:
        return {"working_dir": str(job)}
    root = Path(__file__).parents[2]
    package.mkdir()
    shutil.copy(root / "__init__.py", package)  # without it an installed scopemill would be imported instead
    for room in ROOMS:
        shutil.copytree(root / room, package / room, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    distribution = metadata.distribution("scopemill")
    place = job / f"scopemill-{distribution.version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(distribution.read_text("METADATA") or "")
    return {"working_dir": str(job), "py_modules": [str(package)]}


def forwarded(names: Iterable[str]) -> dict[str, str]:
    """Values of this environment for the job's. InputError for one that is not set, and for what may be a credential."""
    values = {}
    for name in names:
        if _SECRET.search(name):
            raise InputError(
                f"--env {name}: Ray shows a job's environment to all who see the job; set credentials where the cluster is started"
            )
        if name not in os.environ:
            raise InputError(f"--env {name}: it is not set here")
        values[name] = os.environ[name]
    return values
