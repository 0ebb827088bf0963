"""Send messages to every open page.

A page gets again what it missed while its connection was broken.
"""

import asyncio
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator, Collection
from fnmatch import fnmatchcase
from typing import Any

KEPT = 4096  # messages that a page may have missed
WAITING = 1024  # messages that a slow page may lag behind; then it is told to read the lists again
ALIVE_SECONDS = 15.0
RESYNC = {"channel": "bucket", "event": "resync", "data": {}}
END = object()  # in a page's queue: the service ends


class Message:
    """Hold one message as it is sent: its number, its channel and its JSON."""

    __slots__ = ("number", "channel", "text")

    def __init__(self, number: int, channel: str, event: str, data: Any):
        self.number, self.channel = number, channel
        self.text = json.dumps({"channel": channel, "event": event, "data": data}, separators=(",", ":"))


class Hub:
    """Pass messages on; it belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex[:8]  # numbers of another run of the service mean nothing in this one
        self._kept: deque[Message] = deque(maxlen=KEPT)
        self._number = 0
        self._ended = False
        self._pages: set[asyncio.Queue[Message | object | None]] = set()

    @property
    def watched(self) -> bool:
        """Return True while any page is open."""
        return bool(self._pages)

    def send(self, channel: str, event: str, data: Any) -> None:
        """Send a message to every page that listens to its channel."""
        self._number += 1
        message = Message(self._number, channel, event, data)
        self._kept.append(message)
        for page in self._pages:
            if page.full():
                _replace_all(page, None)
            else:
                page.put_nowait(message)

    def end(self) -> None:
        """End every page's stream, now and later: a server that shuts down waits for them."""
        self._ended = True
        for page in self._pages:
            _replace_all(page, END)

    def id_of(self, number: int) -> str:
        """Return the id of a message, by which a page resumes."""
        return f"{self._run}-{number}"

    async def listen(self, channels: Collection[str], last_id: str | None = None) -> AsyncIterator[tuple[str, str]]:
        """Yield ids and JSON of messages on channels, which may hold ``*``.

        An empty pair says that the connection lives. With the id of the last message that a page got, those that it missed come first.
        If they are not kept any more, ``resync`` on the channel ``bucket`` asks it to read the lists again.
        """
        if self._ended:
            return
        page: asyncio.Queue[Message | object | None] = asyncio.Queue(WAITING)
        self._pages.add(page)
        try:
            missed = self._since(last_id)
            if missed is None:
                yield self.id_of(self._number), json.dumps(RESYNC)
            else:
                for message in missed:
                    if wanted(message.channel, channels):
                        yield self.id_of(message.number), message.text
            while True:
                try:
                    next_one = await asyncio.wait_for(page.get(), ALIVE_SECONDS)
                except TimeoutError:
                    yield "", ""
                    continue
                if next_one is END:
                    return
                if not isinstance(next_one, Message):
                    yield self.id_of(self._number), json.dumps(RESYNC)
                elif wanted(next_one.channel, channels):
                    yield self.id_of(next_one.number), next_one.text
        finally:
            self._pages.discard(page)

    def _since(self, last_id: str | None) -> list[Message] | None:
        """Return the messages after one, or None if some of them are lost."""
        if last_id is None:
            return []
        run, _, number = last_id.partition("-")
        if run != self._run or not number.isdigit():
            return None
        after = int(number)
        if after < self._number - len(self._kept):
            return None
        return [message for message in self._kept if message.number > after]


def _replace_all(page: asyncio.Queue[Message | object | None], by: object | None) -> None:
    while not page.empty():
        page.get_nowait()
    page.put_nowait(by)


def wanted(channel: str, channels: Collection[str]) -> bool:
    """Return True if a channel is asked for; no channels ask for all."""
    return not channels or any(fnmatchcase(channel, pattern) for pattern in channels)
