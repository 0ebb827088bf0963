"""Read many objects side by side.

A store answers each after some milliseconds, and a large sweep has thousands.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

READS_AT_ONCE = 16
T = TypeVar("T")
U = TypeVar("U")


def side_by_side(read: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """Call a function for all items, some at a time.

    The function waits for the bucket. The results keep the items' order.
    """
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return list(pool.map(read, items))
