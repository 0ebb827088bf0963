"""Keep what was read of objects for as long as their version stays."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
MOST_ENTRIES = 4096


class VersionedCache:
    """Hold the newest entries that were used; any thread may call it."""

    def __init__(self, most: int = MOST_ENTRIES):
        self._most, self._lock = most, threading.Lock()
        self._entries: OrderedDict[Any, tuple[Any, Any]] = OrderedDict()

    def get(self, key: Any, version: Any, read: Callable[[], T]) -> T:
        """Return what was read under this key and version, or read it now."""
        with self._lock:
            known = self._entries.get(key)
            if known and known[0] == version:
                self._entries.move_to_end(key)
                value: T = known[1]
                return value
        value = read()
        with self._lock:
            self._entries[key] = (version, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)
        return value
