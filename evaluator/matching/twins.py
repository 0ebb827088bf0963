"""Write and read latents' twins in another SAE, beside the evidence.

``evidence/twins/<other>.parquet`` in the SAE's folder, named by the other's weights. A file of older weights is not read.
"""

import json
import posixpath
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from scopemill.evaluator.evidence.reader import Evidence
from scopemill.proto.errors import CorruptObject
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket

FORMAT, FOLDER, _KEY = 1, "twins", b"scopemill.twins"
_ids, _numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
TWINS = pa.schema(
    [
        ("latent", pa.int32()),
        ("nearest_latents", _ids),  # of the other SAE, by decoder cosine; empty where decoder rows are not comparable
        ("nearest_cosines", _numbers),
        ("mutual", pa.bool_()),  # the nearest one's nearest is this latent; null where decoder rows are not comparable
        ("cofiring_latents", _ids),  # of the other SAE, by phi on the same rows; empty where no rows were given
        ("cofiring_phi", _numbers),
        ("children", _ids),  # of a wider SAE: the latents that this one splits into
        ("children_scores", _numbers),  # their cosine with this latent, or phi where rows are not comparable
        ("children_overlap", _numbers),  # share of the child's firings on which this latent fires too
    ]
)


@dataclass(frozen=True)
class TwinsRecord:
    """Say which SAEs a file is of, and how alike they are."""

    weights: str  # digest of this SAE's weights
    other: str  # the other's path below ``saes/``, or its folder
    other_folder: str  # relative to this SAE's folder, or absolute
    other_weights: str
    other_hooks: tuple[str, ...]  # that the other reconstructs
    other_architecture: str
    other_width: int
    axes: tuple[str, ...]  # in which the two differ
    rows: int  # on which firing was compared; 0: none
    similarity: dict[str, float]


@dataclass(frozen=True)
class Twins:
    """Hold a file of twins."""

    record: TwinsRecord
    table: pa.Table

    def of(self, latent: int) -> dict[str, Any]:
        """Return the row of one latent."""
        row: dict[str, Any] = self.table.slice(latent, 1).to_pylist()[0]
        return row

    @property
    def title(self) -> str:
        """Return in what the other SAE differs, and its name."""
        return f"{', '.join(self.record.axes) or 'same settings'}: {self.record.other}"


def write_twins(folder: str, record: TwinsRecord, table: pa.Table) -> None:
    """Write the twins of an SAE's latents in another, over older ones."""
    metadata = {_KEY: json.dumps({"format": FORMAT, **asdict(record)}).encode()}
    sink = pa.BufferOutputStream()
    parquet.write_table(table.cast(TWINS).replace_schema_metadata(metadata), sink, compression="zstd")
    Bucket(folder).write(f"{SaeLayout('').evidence}/{FOLDER}/{record.other_weights}.parquet", sink.getvalue())


def twins_in(bucket: Bucket, evidence: str = "evidence", weights: str | None = None) -> list[Twins]:
    """Return an SAE's twins in every other that was matched, by title.

    ``evidence`` is the folder of the SAE's evidence. ``weights`` is the digest of the SAE's weights: twins of other weights are passed
    over.
    """
    root = f"{evidence}/{FOLDER}"
    found = [_read(bucket, f"{root}/{name}") for name in bucket.names(root) if name.endswith(".parquet")]
    return sorted((twins for twins in found if weights in (None, twins.record.weights)), key=lambda twins: twins.title)


def twins_of(evidence: Evidence) -> list[Twins]:
    """Return the twins of an SAE's latents, beside its evidence."""
    return twins_in(evidence.bucket, evidence.layout.root.rpartition("/")[0], evidence.record.settings.get("weights"))


def _read(bucket: Bucket, path: str) -> Twins:
    try:
        table = parquet.read_table(pa.BufferReader(bucket.read(path)), use_threads=False)  # small; and no thread is left at exit
        fields = json.loads(table.schema.metadata[_KEY])
        if fields.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        for name in ("other_hooks", "axes"):
            fields[name] = tuple(fields[name])
        return Twins(TwinsRecord(**fields), table)
    except (ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise CorruptObject(f"{bucket.place(path)} does not hold twins ({error}): delete it, and run scopemill match again") from error


def relative_folder(own: str, other: str) -> str:
    """Return another folder as seen from one, so that buckets may be moved."""
    if own.rpartition("://")[0] != other.rpartition("://")[0] or not _root(own) or _root(own) != _root(other):
        return other
    return posixpath.relpath(_path(other), _path(own))


def other_folder(own: str, relative: str) -> str:
    """Return the folder that `relative_folder` named, seen from the folder of this SAE."""
    if "://" in relative or relative.startswith("/"):
        return relative
    scheme, mark, _ = own.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(posixpath.join(_path(own), relative))}"


def _path(folder: str) -> str:
    return folder.rpartition("://")[2].rstrip("/")


def _root(folder: str) -> str:
    """Return the bucket's part of a folder: what lies before ``saes/``."""
    return _path(folder).rpartition("/saes/")[0]
