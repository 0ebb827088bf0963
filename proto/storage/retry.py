"""Retry transient failures of a store, with growing pauses, until a deadline."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 8.0  # seconds; each pause is about twice the one before
DEADLINE_SECONDS = 60.0  # from the first attempt on

# s3fs maps SlowDown and ServiceUnavailable to EBUSY, InternalError to EREMOTEIO, and unknown codes to EIO.
_TRANSIENT_CODES = {
    errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EREMOTEIO, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH,
}  # fmt: skip
# Classes of botocore and aiohttp for cut connections and bodies, by name: neither library has to be installed.
_TRANSIENT_CLASSES = {"ConnectionError", "HTTPClientError", "ResponseStreamingError", "ClientConnectionError", "ClientPayloadError"}


def is_transient(error: Exception) -> bool:
    """Return True if the same request may succeed later.

    Throttling, timeouts and broken connections are transient; refusals and full disks are not.
    """
    if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in _TRANSIENT_CODES):
        return True
    return bool(_TRANSIENT_CLASSES & {kind.__name__ for kind in type(error).__mro__})


def retry(attempt: Callable[[], T], note_retry: Callable[[], None]) -> T:
    """Return the attempt's result; raise its last error if not transient, or near the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    tries = 0
    while True:
        try:
            return attempt()
        except Exception as error:
            # Jitter: clients that failed together must not retry together.
            pause = random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, FIRST_PAUSE * 2**tries)
            if not is_transient(error) or time.monotonic() + pause > deadline:
                raise
        tries += 1
        note_retry()
        time.sleep(pause)
