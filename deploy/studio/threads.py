"""Call what waits for the bucket without holding up the event loop."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function returns that waits, for the bucket or for other programs."""
    return await asyncio.to_thread(call, *args, **kwargs)
