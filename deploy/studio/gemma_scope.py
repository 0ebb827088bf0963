"""List Gemma Scope trees, each once for a while.

A hub takes seconds to list a thousand SAEs.
"""

import asyncio
import time

from scopemill.deploy.studio.helper import Helper
from scopemill.deploy.studio.models.saes import GemmaScopeChoices, GemmaScopeEntry

KEPT_SECONDS = 600.0
MOST_TREES = 16


class Trees:
    """List trees by a helper; it belongs to the event loop's thread."""

    def __init__(self, importer: Helper):
        self._importer, self._lock = importer, asyncio.Lock()
        self._kept: dict[str, tuple[float, list[GemmaScopeEntry]]] = {}

    async def entries(self, source: str) -> list[GemmaScopeEntry]:
        """Return every SAE of a tree; InputError if it cannot be listed."""
        async with self._lock:  # who asks meanwhile gets the same
            known = self._kept.pop(source, None)
            if known is None or time.monotonic() - known[0] > KEPT_SECONDS:
                listed = await self._importer.call("gemma_scope", source=source)
                known = time.monotonic(), [GemmaScopeEntry(**one) for one in listed]
            self._kept[source] = known
            while len(self._kept) > MOST_TREES:
                self._kept.pop(next(iter(self._kept)))
            return known[1]


def choices(entries: list[GemmaScopeEntry]) -> GemmaScopeChoices:
    """Return by what a tree's SAEs can be chosen."""
    return GemmaScopeChoices(
        models=sorted({one.model for one in entries}),
        sites=sorted({one.site for one in entries}),
        layers=sorted({one.layer for one in entries if one.layer is not None}),
        widths=sorted({one.width for one in entries}, key=_latents),
    )


def _latents(width: str) -> int:
    return int(width.rstrip("km")) * {"k": 1024, "m": 1024**2}.get(width[-1], 1)
