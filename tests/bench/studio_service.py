"""Serve a bucket as ``scopemill studio`` does, and time everything that the event loop runs: started by studio.py.

Each line of the input is answered by what has been timed since the line before, as JSON.
"""

import asyncio
import json
import sys
import threading
import time

from support.studio import TOKEN

from scopemill.deploy.studio.access import Access
from scopemill.deploy.studio.server import serve, settings_of
from scopemill.deploy.studio.service import Settings

BLOCKED = 0.05  # seconds


class Stopwatch:
    """Times the callbacks of every event loop, each being one stretch in which nothing else gets its turn."""

    def __init__(self):
        self.reset()
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            wall, processor = time.perf_counter(), time.thread_time()
            run(handle)
            self._note(time.perf_counter() - wall, time.thread_time() - processor, handle)

        asyncio.Handle._run = timed  # type: ignore[method-assign]

    def reset(self) -> None:
        self.wall = self.processor = 0.0
        self.blocked = self.callbacks = 0
        self.what = ""

    def _note(self, wall: float, processor: float, handle: asyncio.Handle) -> None:
        if processor > self.processor:
            self.processor, self.what = processor, _name(handle)
        self.wall = max(self.wall, wall)
        self.callbacks += 1
        self.blocked += wall > BLOCKED

    def answer(self) -> None:
        """Tell the longest stretch, by the clock and by the processor's time, which other programs do not lengthen."""
        for _ in sys.stdin:
            told = {"wall": self.wall, "processor": self.processor, "blocked": self.blocked, "callbacks": self.callbacks, "what": self.what}
            self.reset()
            print(json.dumps(told), flush=True)


def _name(handle: asyncio.Handle) -> str:
    """What ran: of a task the innermost coroutine that is still waiting, else the function."""
    called = getattr(handle, "_callback", None)
    owner = getattr(called, "__self__", None)
    if not isinstance(owner, asyncio.Task):
        return getattr(called, "__qualname__", str(called))
    found = owner.get_coro()
    while getattr(found, "cr_await", None) is not None and hasattr(found.cr_await, "cr_await"):
        found = found.cr_await
    return getattr(found, "__qualname__", str(found))


if __name__ == "__main__":
    given, listening = settings_of(sys.argv[1], "127.0.0.1", 0, (), False, False)
    settings = Settings(given.bucket, Access(TOKEN, listening.getsockname()[1]))
    threading.Thread(target=Stopwatch().answer, daemon=True).start()
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    serve(settings, listening)
