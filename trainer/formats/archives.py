"""Unpack archives of arrays, after checking how much they would unpack to.

A few kilobytes can claim terabytes: as compressed zeros, or as an array whose header tells a shape that its bytes do not fill.
"""

import io
import math
import zipfile

import numpy as np
import torch

from scopemill.proto.errors import SaeFormatError

MOST_FOLD = 16  # weights are noise, which hardly compresses; thresholds and biases may all be equal
SMALL = 64 * 2**20  # bytes that may be unpacked whatever the size of the archive


def check_unpacked_size(place: str, data: bytes) -> None:
    """Raise SaeFormatError if a zip archive would unpack to far more than its own size."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise SaeFormatError(f"{place} cannot be read: {error}") from error
    if total > max(SMALL, MOST_FOLD * len(data)):
        raise SaeFormatError(
            f"{place} has {len(data)} bytes and would unpack to {total}: weights do not compress to less than a {MOST_FOLD}th of their size"
        )


def read_npz(place: str, data: bytes) -> dict[str, torch.Tensor]:
    """Return the arrays of an npz archive.

    SaeFormatError for a damaged one, for arrays of other than floats, or one that claims too much.
    """
    check_unpacked_size(place, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                _check_header(place, archive, member)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name].astype(arrays[name].dtype.newbyteorder("="))) for name in arrays.files}
    except SaeFormatError:
        raise
    except Exception as error:  # numpy raises many kinds for a file that is truncated, or holds pickled objects
        raise SaeFormatError(f"{place} cannot be read: {error}") from error


def _check_header(place: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise SaeFormatError(f"{place}: array {member.filename} holds {dtype}; weights have to be float16, float32 or float64.")
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise SaeFormatError(f"{place}: array {member.filename} claims the shape {list(shape)}, and its file has {member.file_size} bytes.")


def check_storages(place: str, tensors: dict[str, torch.Tensor]) -> None:
    """Raise SaeFormatError for a tensor that claims more values than the file holds for it."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise SaeFormatError(f"{place}: tensor {name} claims the shape {list(tensor.shape)}, and the file holds fewer values for it.")
