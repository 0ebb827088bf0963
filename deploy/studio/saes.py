"""List the finished SAEs of a bucket."""

import json

from scopemill.deploy.studio.cache import VersionedCache
from scopemill.deploy.studio.models.saes import SaeEntry
from scopemill.deploy.studio.trainings import Trainings, quality_of
from scopemill.proto.errors import MissingObject
from scopemill.proto.layout import SaeLayout, width_label
from scopemill.proto.storage.bucket import Bucket

WIDTHS = {width_label(1 << power): 1 << power for power in range(10, 24)}


def entries(bucket: Bucket, cache: VersionedCache, trainings: Trainings) -> list[SaeEntry]:
    """Return every finished SAE of a snapshot by path."""
    ids = {entry.record.root: id for id, entry in trainings.by_id.items()}
    return [_entry(bucket, cache, trainings, path, ids.get(path)) for path in sorted(trainings.snapshot.saes) if _finished(trainings, path)]


def origins(bucket: Bucket, cache: VersionedCache, trainings: Trainings) -> set[str]:
    """Return the folders from which the finished SAEs of a snapshot were imported."""
    return {one.imported_from for one in entries(bucket, cache, trainings) if one.imported_from}


def _finished(trainings: Trainings, path: str) -> bool:
    return trainings.snapshot.saes[path].state.finished


def _entry(bucket: Bucket, cache: VersionedCache, trainings: Trainings, path: str, training: str | None) -> SaeEntry:
    facts = trainings.snapshot.saes[path]
    _, model, hook, width, architecture, _ = path.split("/")
    known = trainings.by_id[training].training if training else None
    label = width.removeprefix("width_")
    return SaeEntry(
        path=path,
        model=model,
        hook=hook,
        layer=_layer(hook),
        architecture=architecture,
        width=known.width if known else WIDTHS.get(label) or (int(label) if label.isdigit() else None),
        quality=quality_of(facts.evaluation),
        evidence=facts.evidence,
        imported_from=None if training else cache.get(("origin", path), None, lambda: _origin(bucket, path)),
        training=training,
    )


def _layer(hook: str) -> int | None:
    part = hook.split("--")[0].split(".")
    return int(part[1]) if len(part) > 1 and part[1].isdigit() else None


def _origin(bucket: Bucket, path: str) -> str | None:
    try:
        found = json.loads(bucket.read(SaeLayout(path).provenance)).get("imported_from")
    except (MissingObject, ValueError, AttributeError):
        return None
    return str(found) if found else None
