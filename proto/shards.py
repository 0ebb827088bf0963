"""List, verify and delete the objects of a committed shard.

A shard's bytes are a pure function of the plan. So a damaged shard is taken back, commit record first, and harvested again.
"""

import json

from scopemill.proto.chunks import read_chunk
from scopemill.proto.dataset import DatasetManifest, read_commit
from scopemill.proto.errors import CorruptObject
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket


def chunk_paths(manifest: DatasetManifest, shard: int) -> list[str]:
    """Return the paths of a shard's chunk objects."""
    layout = DatasetLayout(manifest.dataset)
    return [f"{layout.array(shard, spec.name)}/{spec.chunk_key(i)}" for spec in manifest.arrays for i in range(spec.chunks)]


def verify_shard(bucket: Bucket, manifest: DatasetManifest, shard: int) -> None:
    """Read all of a committed shard; raise MissingObject or CorruptObject for a damaged one."""
    layout, commit = DatasetLayout(manifest.dataset), read_commit(bucket, manifest.dataset, shard)
    buffer = memoryview(bytearray(max(spec.chunk_bytes for spec in manifest.arrays)))
    for spec in manifest.arrays:
        for index in range(spec.chunks):
            crc, memory = commit.checksums[spec.name][index], buffer[: spec.chunk_bytes]
            read_chunk(bucket, layout.array(shard, spec.name), spec, index, crc, memory)
    for folder in (layout.shard(shard), *(layout.array(shard, spec.name) for spec in manifest.arrays)):
        path = f"{folder}/zarr.json"
        try:
            json.loads(bucket.read(path))
        except ValueError as error:
            raise CorruptObject(f"{bucket.place(path)} is not JSON: the shard has to be made again") from error


def take_back(bucket: Bucket, dataset: str, shard: int) -> None:
    """Delete a shard's commit record: the next harvest makes the shard again."""
    bucket.remove(DatasetLayout(dataset).commit(shard))


def remove_shard(bucket: Bucket, dataset: str, shard: int) -> None:
    """Delete a shard, its commit record first.

    A shard without a record does not exist.
    """
    take_back(bucket, dataset, shard)
    bucket.remove_tree(DatasetLayout(dataset).shard(shard))
