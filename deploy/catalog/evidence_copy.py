"""Copy an SAE's evidence between buckets, against its checksums, the record last."""

import tempfile
from contextlib import suppress
from pathlib import Path

import crc32c

from scopemill.evaluator.evidence.reader import Evidence, evidence_of
from scopemill.proto.errors import CorruptObject, MissingObject
from scopemill.proto.layout import EvidenceLayout
from scopemill.proto.storage.bucket import Bucket

PIECE_BYTES = 2**26  # of an object in memory at once


def copy_evidence(bucket: Bucket, folder: str, target: Bucket, copy: str) -> None:
    """Copy the evidence of an SAE's folder, with labels and all beside it.

    Nothing happens if there is none. Objects that are there already are not written again. CorruptObject if one does not match its
    checksum.
    """
    try:
        evidence = evidence_of(bucket, folder)
    except MissingObject:
        return
    to = EvidenceLayout(copy, evidence.layout.root.rsplit("/", 1)[-1])
    left = (f"{evidence.layout.work}/", f"{evidence.layout.answers}/")  # of use where labels and evidence are made
    whole = _is_there(evidence, target, copy, to)
    for path in bucket.find(evidence.layout.root):
        name = path.removeprefix(f"{evidence.layout.root}/")
        place = f"{to.root}/{name}"
        if name in evidence.record.objects:
            if not whole:
                _copy_object(bucket, path, target, place, evidence.record.objects[name].crc32c)
        elif path != evidence.layout.record and not path.startswith(left):
            data = bucket.read(path)
            if not target.exists(place) or target.read(place) != data:
                target.write(place, data)
    if not whole:
        target.write(to.record, bucket.read(evidence.layout.record))


def _is_there(evidence: Evidence, target: Bucket, copy: str, to: EvidenceLayout) -> bool:
    """Return True if the same evidence is committed at the target, and each of its objects has its size."""
    with suppress(CorruptObject):
        if target.exists(to.record):
            there = Evidence.open(target, copy, to.root.rsplit("/", 1)[-1])
            return there.record == evidence.record and there.is_whole()
    return False


def _copy_object(bucket: Bucket, path: str, target: Bucket, place: str, checksum: int) -> None:
    """Copy an object through a local file, so that memory does not grow with it."""
    size = bucket.size(path)
    if size is None:
        raise MissingObject(f"{bucket.place(path)} is not there, and the evidence's record names it: make it again with scopemill evidence")
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "object"
        with local.open("wb") as file:
            for start in range(0, size, PIECE_BYTES):
                piece = bucket.read_range(path, start, min(start + PIECE_BYTES, size))
                found = crc32c.crc32c(piece, found)
                file.write(piece)
        if found != checksum:
            raise CorruptObject(f"{bucket.place(path)} does not match its checksum: make it again with scopemill evidence")
        target.write_file(place, local)
