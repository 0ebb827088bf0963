"""List the finished SAEs of a bucket. Needs no torch."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch

from scopemill.proto.errors import CorruptObject
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record

AT_ONCE = 16  # requests


@dataclass(frozen=True)
class SaeEntry:
    """Describe a finished SAE of a bucket: ``load_sae(entry.path)`` loads it."""

    path: str
    model: str
    hook: str
    width: int
    architecture: str
    l0: float | None  # None: not measured
    fvu: float | None


def list_saes(bucket: str, match: str = "*") -> list[SaeEntry]:
    """Return a bucket's finished SAEs that match a pattern, sorted by path.

    The pattern is matched against the path below ``saes/``. A path reads like
    ``gemma-2-2b/blocks.12.hook_resid_post/width_16k/jumprelu/0.0006-1a2b3c4d``.
    """
    place = Bucket(bucket)
    objects = set(place.find("saes"))
    layouts = [SaeLayout(path.rpartition("/")[0]) for path in sorted(objects) if _is_config(path)]
    chosen = [layout for layout in layouts if fnmatch(layout.root.removeprefix("saes/"), match)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [entry for entry in threads.map(lambda layout: _entry(place, layout, objects), chosen) if entry]


def _is_config(path: str) -> bool:
    return path == SaeLayout(path.rpartition("/")[0]).config and path.count("/") >= len(("model", "hook", "width", "kind", "id")) + 1


def _entry(bucket: Bucket, layout: SaeLayout, objects: Iterable[str]) -> SaeEntry | None:
    """Return an SAE's entry; None for a cfg.json that is empty or broken, which makes no finished SAE."""
    model, hook, _, architecture, _ = layout.root.removeprefix("saes/").rsplit("/", 4)
    try:
        width = json.loads(bucket.read(layout.config))["d_sae"]
    except (ValueError, LookupError, TypeError):
        return None
    result = {}
    if layout.metrics in objects:
        try:
            result = read_record(bucket, layout.metrics).get("result", {})
        except CorruptObject:  # another tool's file of that name
            pass
    return SaeEntry(bucket.place(layout.root), model, hook, width, architecture, result.get("l0"), result.get("fvu"))
