"""Memory that is freed stays with the process: fresh pages cost more to touch than most of our passes over them."""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8  # of glibc's malloc.h
_LARGEST_KEPT = 2**30, 2**25  # bytes of a block; glibc before 2.35 refuses more than the second


def keep_freed_memory() -> None:
    """Tell glibc to recycle blocks of many megabytes rather than give them back; elsewhere nothing happens.

    torch allocates each intermediate anew: a step of a few such passes ran 1.2 to 1.8 times faster with this. Threads share one
    heap, as those of their own hold no block of more than 64 MiB: a pass over 52 MiB took five times longer in a thread.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)
    mallopt(_M_ARENA_MAX, 1)
