"""Inject faults of object stores into any fsspec filesystem: ``faulty(Bucket("memory://x"), storm)``.

Every request passes every fault. A fault raises an error, changes the bytes, or does nothing. It sees the verb (the fsspec
method), the path and the result.
"""

import errno
import random
import time
from collections.abc import Callable
from typing import Any

import fsspec

from scopemill.proto.storage.bucket import Bucket

READS, WRITES = {"cat_file"}, {"pipe_file"}


class ClientPayloadError(Exception):
    """Stand in for aiohttp's error for a body that ends early."""


class FaultyFileSystem:
    """Forward requests to a filesystem through faults. ``log`` holds each request as (verb, path)."""

    def __init__(self, fs, faults: list["Fault"]):
        self._fs, self._faults = fs, faults
        self.log: list[tuple[str, str]] = []

    def __getattr__(self, verb: str) -> Callable:
        method = getattr(self._fs, verb)

        def call(path: str, *args, **kwargs) -> Any:
            self.log.append((verb, path))
            for fault in self._faults:
                fault.before(verb, path)
            result = method(path, *args, **kwargs)
            for fault in self._faults:
                result = fault.after(verb, path, result)
            return result

        return call

    def count(self, verb: str) -> int:
        return sum(v == verb for v, _ in self.log)


class Fault:
    """Strike the first ``times`` requests with one of ``verbs`` (none: any) and ``where`` in the path."""

    def __init__(self, times: float = 1, verbs: set[str] = frozenset(), where: str = ""):
        self._left, self._verbs, self._where = times, verbs, where

    def strikes(self, verb: str, path: str) -> bool:
        if (self._verbs and verb not in self._verbs) or self._where not in path or self._left <= 0:
            return False
        self._left -= 1
        return True

    def before(self, verb: str, path: str) -> None:
        pass

    def after(self, verb: str, path: str, result: Any) -> Any:
        return result


class Raises(Fault):
    """Refuse the request: nothing is done."""

    def __init__(self, error: Exception, times: float = 1, verbs: set[str] = frozenset(), where: str = ""):
        super().__init__(times, verbs, where)
        self._error = error

    def before(self, verb: str, path: str) -> None:
        if self.strikes(verb, path):
            raise self._error


class LostReply(Raises):
    """Carry out the request, but raise an error."""

    def before(self, verb: str, path: str) -> None:
        pass

    def after(self, verb: str, path: str, result: Any) -> Any:
        if self.strikes(verb, path):
            raise self._error
        return result


class Damages(Fault):
    """Return other bytes than the stored ones."""

    def __init__(self, damage: Callable[[bytes], bytes], times: float = 1, where: str = ""):
        super().__init__(times, READS, where)
        self._damage = damage

    def after(self, verb: str, path: str, result: Any) -> Any:
        return self._damage(result) if self.strikes(verb, path) else result


class Latency(Fault):
    """Delay every request by up to ``seconds``."""

    def __init__(self, seconds: float):
        super().__init__(times=float("inf"))
        self._seconds, self._chance = seconds, random.Random(0)

    def before(self, verb: str, path: str) -> None:
        time.sleep(self._chance.uniform(0, self._seconds))


class LostRace(Fault):
    """Let another writer create the object just before."""

    def __init__(self, other: Callable[[], None], where: str = ""):
        super().__init__(1, WRITES, where)
        self._other = other

    def before(self, verb: str, path: str) -> None:
        if self.strikes(verb, path):
            self._other()


def slow_down(times: float = 3, verbs: set[str] = frozenset(), where: str = "") -> Fault:
    """Return a fault like s3fs' error for 503, after its own retries."""
    return Raises(OSError(errno.EBUSY, "Please reduce your request rate."), times, verbs, where)


def cut_connection(times: float = 1, where: str = "") -> Fault:
    return LostReply(ClientPayloadError("Response payload is not completed"), times, READS, where)


def full_disk(where: str = "") -> Fault:
    return Raises(OSError(errno.ENOSPC, "No space left on device"), float("inf"), WRITES, where)


def vanished(where: str) -> Fault:
    return Raises(FileNotFoundError(where), float("inf"), READS, where)


def flip_a_bit(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 16]) + data[len(data) // 2 + 1 :]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def zeros(data: bytes) -> bytes:
    return bytes(len(data))


def faulty(bucket: Bucket, *faults: Fault) -> Bucket:
    """Return the bucket seen through faults; ``bucket.requests`` is the `FaultyFileSystem`."""
    seen = Bucket(bucket.url)
    fs, _ = fsspec.core.url_to_fs(bucket.url, **({"auto_mkdir": True} if seen._local else {}))
    seen._fs = seen.requests = FaultyFileSystem(fs, list(faults))
    seen._local = False  # a folder too is read through fsspec, where the faults are
    return seen
