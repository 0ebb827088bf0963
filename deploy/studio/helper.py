"""Call what needs torch or Ray in processes of their own.

Each is started at first use, so the service itself stays small. A call and its answer are lines of JSON. The process ends with the
service, whose end closes its input.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from scopemill.proto import errors
from scopemill.proto.errors import ScopemillError

MOST_BYTES = 2**28  # of an answer
Note = Callable[[dict[str, Any]], None]


class Helper:
    """Hold one process, which carries out one call after another."""

    def __init__(self, what: str):
        self._what, self._lock = what, asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def call(self, name: str, note: Note = lambda note: None, **arguments: Any) -> Any:
        """Return what a function of `heavy` returns.

        ``note`` gets what it tells meanwhile. Its errors are raised here.
        """
        async with self._lock:
            process = await self._started()
            assert process.stdin and process.stdout
            try:
                process.stdin.write(json.dumps({"call": name, "arguments": arguments}).encode() + b"\n")
                await process.stdin.drain()
                while line := await process.stdout.readline():
                    answer = json.loads(line)
                    if "note" in answer:
                        note(answer["note"])
                    elif "error" in answer:
                        raise _error(answer["error"])
                    else:
                        return answer["result"]
            except (ConnectionError, ValueError) as error:
                self._end()
                raise ScopemillError(f"{self._what} did not answer: {error}; it is started again at its next use") from error
            except asyncio.CancelledError:  # its answer would be taken for the next call's
                self._end()
                raise
            self._process = None
            code = await process.wait()
            why = ", for want of memory perhaps" if code == -9 else ""
            raise ScopemillError(f"{self._what} ended with exit code {code}{why}; it is started again at its next use")

    async def close(self) -> None:
        """End the process, if it was started, and wait.

        Its pipes must not outlive the event loop.
        """
        process = self._process
        self._end()
        if process:
            await process.wait()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "scopemill.deploy.studio.heavy",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MOST_BYTES,
            )  # fmt: skip
        return self._process

    def _end(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
        self._process = None


def _error(given: dict[str, str]) -> ScopemillError:
    kind = getattr(errors, given["kind"], ScopemillError)
    return kind(given["sentence"]) if isinstance(kind, type) and issubclass(kind, ScopemillError) else ScopemillError(given["sentence"])
