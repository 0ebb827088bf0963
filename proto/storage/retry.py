"""Patience with a store: what may pass by itself is tried again, after growing pauses, until a deadline."""

import errno
import random
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 8.0  # seconds; each pause is about twice the one before
DEADLINE_SECONDS = 60.0  # for all attempts together

# s3fs gives SlowDown and ServiceUnavailable as EBUSY, InternalError as EREMOTEIO, and codes that it does not know as EIO.
_PASSING = {
    errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EREMOTEIO, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
}  # fmt: skip
# By name, so that no client library need be there: connections and bodies cut short, as botocore and aiohttp tell it.
_PASSING_NAMES = {"ConnectionError", "HTTPClientError", "ResponseStreamingError", "ClientConnectionError", "ClientPayloadError"}


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later: throttling, timeouts and broken connections, but no refusal and no full disk."""
    if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in _PASSING):
        return True
    return bool(_PASSING_NAMES & {kind.__name__ for kind in type(error).__mro__})


def retry(attempt: Callable[[], T], note_retry: Callable[[], None]) -> T:
    """The attempt's result; its last error once that cannot pass or the deadline is near."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    for tries in count():
        try:
            return attempt()
        except Exception as error:
            # Jitter: many clients that were turned away together must not come back together.
            pause = random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries)
            if not is_transient(error) or time.monotonic() + pause > deadline:
                raise
        note_retry()
        time.sleep(pause)
