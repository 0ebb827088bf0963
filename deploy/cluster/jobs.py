"""Submit, follow and stop sweeps as Ray jobs, from anywhere that reaches a cluster's dashboard."""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.proto.credentials import in_variable
from scopemill.proto.errors import InputError, ScopemillError

PACKAGE = Path(__file__).parents[2]  # the folder `scopemill`: a checkout's root, or the folder of an installed wheel
ROOMS = ("proto", "harvester", "activation_server", "trainer", "evaluator", "deploy")
ROOT_FILES = ("__init__.py", "py.typed")  # of the package itself, where they exist; a checkout's other files are not the package's
STOP_SECONDS = 90  # for trainers to checkpoint and the driver to end; Ray's own default is 3
POLL_SECONDS = 0.5
_SWEEP = "scopemill_sweep"  # the key of a job's metadata that names its sweep


@dataclass(frozen=True)
class _Submission:
    id: str
    status: JobStatus


class Jobs:
    """Submit, follow and stop the sweeps of one cluster.

    InputError if the cluster cannot be used, or does not know the sweep. Ray takes its token from ``RAY_AUTH_TOKEN`` or from the
    usual file, where ``RAY_AUTH_MODE`` is token.
    """

    def __init__(self, address: str):
        self._address = address
        with self._errors():
            self._client = JobSubmissionClient(address)
        logging.getLogger("ray").setLevel(logging.ERROR)  # Ray would log its uploads and the sockets that it closes

    def submit(self, config: SweepConfig, environment: dict[str, str], installed: bool, command: str = "sweep") -> None:
        """Start a sweep, or another command on its file.

        It continues from what an earlier submission committed. With ``installed``, the cluster's image has Scopemill; else this
        process' own code is sent along. InputError if the sweep is running already.
        """
        if self.is_at_work(config.name):
            raise InputError(
                f"sweep {config.name} is running on {self._address} already: stop it with scopemill stop, or follow it with scopemill logs"
            )
        earlier = self._submissions(config.name)
        with self._errors(), tempfile.TemporaryDirectory() as folder:
            packed = pack(Path(folder), config, installed)
            self._client.submit_job(
                entrypoint=f"python -m scopemill.deploy {command} sweep.yaml --wait",
                submission_id=f"{config.name}-{len(earlier) + 1}",  # of two simultaneous submissions, Ray refuses one
                metadata={_SWEEP: config.name},
                runtime_env=packed | {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | environment},
            )

    def is_at_work(self, sweep: str) -> bool:
        """Return True while the sweep's newest submission has not ended, also before it begins."""
        earlier = self._submissions(sweep)
        return bool(earlier) and not earlier[-1].status.is_terminal()

    def succeeded(self, sweep: str) -> bool:
        """Return True if the sweep's newest submission has done its work."""
        return self._newest(sweep).status == JobStatus.SUCCEEDED

    def follow(self, sweep: str, write: Callable[[str], object]) -> None:
        """Pass on the sweep's log until the sweep ends; ScopemillError unless it succeeds."""
        job = self._newest(sweep)

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(job.id):
                write(lines)

        with self._errors():
            asyncio.run(tail())
        status = self.wait_for_end(sweep)
        if status != JobStatus.SUCCEEDED:
            raise ScopemillError(f"sweep {sweep} on {self._address} {status.lower()}; its log gives the reason")

    def logs(self, sweep: str) -> str:
        """Return the log of the sweep's newest submission."""
        job = self._newest(sweep)
        with self._errors():
            return self._client.get_job_logs(job.id)

    def stop(self, sweep: str) -> bool:
        """Stop a sweep after it has committed its work.

        Returns False if the sweep was not running.
        """
        job = self._newest(sweep)
        if job.status.is_terminal():
            return False
        with self._errors():
            self._client.stop_job(job.id)
        self.wait_for_end(sweep)
        return True

    def wait_for_end(self, sweep: str) -> JobStatus:
        """Return how the newest submission ended, once it has; ScopemillError if it takes too long."""
        deadline = time.monotonic() + 2 * STOP_SECONDS
        while not (job := self._newest(sweep)).status.is_terminal():
            if time.monotonic() > deadline:
                raise ScopemillError(
                    f"sweep {sweep} on {self._address} has not ended within {2 * STOP_SECONDS} s: read its log with scopemill logs"
                )
            time.sleep(POLL_SECONDS)
        return job.status

    def _newest(self, sweep: str) -> _Submission:
        submissions = self._submissions(sweep)
        if not submissions:
            raise InputError(f"sweep {sweep} was not submitted to {self._address}")
        return submissions[-1]

    def _submissions(self, sweep: str) -> list[_Submission]:
        """Return all submissions of a sweep, the newest last."""
        with self._errors():
            jobs = [job for job in self._client.list_jobs() if (job.metadata or {}).get(_SWEEP) == sweep]
        in_turn = sorted(jobs, key=lambda job: job.start_time or 0)
        return [_Submission(job.submission_id, job.status) for job in in_turn if job.submission_id]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, RayError, aiohttp.ClientError) as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(f"the cluster at {self._address} cannot be used: {reason}") from error


def pack(folder: Path, config: SweepConfig, installed: bool) -> dict[str, Any]:
    """Write what a job takes along into ``folder``, and return Ray's ``runtime_env`` for it.

    The job takes the sweep file and, unless Scopemill is ``installed`` on the cluster, the package as it is here. The package lies apart
    from the sweep file, so that nodes keep it until the code changes. The package's metadata tells the job its version.
    """
    job, package = folder / "job", folder / "scopemill"
    job.mkdir()
    (job / "sweep.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    if installed:
        return {"working_dir": str(job)}
    copy_package(PACKAGE, package)
    distribution = metadata.distribution("scopemill")
    info = job / f"scopemill-{distribution.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(distribution.read_text("METADATA") or "")
    return {"working_dir": str(job), "py_modules": [str(package)]}


def copy_package(root: Path, to: Path) -> None:
    """Copy the package's rooms and own files, without caches and hidden files."""
    for room in ROOMS:
        shutil.copytree(root / room, to / room, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ROOT_FILES:
        if (root / name).is_file():
            shutil.copy(root / name, to / name)


def forwarded(names: Iterable[str]) -> dict[str, str]:
    """Return the values of these environment variables for the job.

    InputError for a variable that is not set, or that may hold a credential.
    """
    values = {}
    for name in names:
        if name not in os.environ:
            raise InputError(f"--env {name}: the variable is not set in this environment; set it, or leave --env {name} out")
        if in_variable(name, os.environ[name]):
            raise InputError(
                f"--env {name}: by its name or its value it may hold a credential, and Ray shows a job's environment to everyone who sees "
                "the job: set it where the cluster is started"
            )
        values[name] = os.environ[name]
    return values
