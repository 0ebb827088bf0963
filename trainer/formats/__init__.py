"""Read and write finished SAEs.

There is one module for each file format, and one table of them all.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scopemill.proto.errors import CorruptObject, InputError, MissingObject, SaeFormatError, StorageError
from scopemill.proto.finished import with_checksum
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record
from scopemill.trainer.formats import dictionary_learning, gemma_scope, saelens, sparsify
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.sae.base import Sae

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?(/.+)?")


@dataclass(frozen=True)
class Format:
    """Describe a file format: its weights file, its reader and its writer.

    A format that is only read has no writer.
    """

    weights: str  # the file in a folder that tells the format
    read: Callable[[str], FinishedSae]
    files: Callable[[str, FinishedSae], dict[str, bytes]] | None = None  # the folder's files, in the order of writing


FORMATS = {
    "saelens": Format(saelens.WEIGHTS, saelens.read_saelens, saelens.saelens_files),
    "gemma-scope": Format(gemma_scope.WEIGHTS_1, gemma_scope.read_gemma_scope, gemma_scope.gemma_scope_files),
    "gemma-scope-2": Format(gemma_scope.WEIGHTS_2, gemma_scope.read_gemma_scope_2, gemma_scope.gemma_scope_2_files),
    "dictionary-learning": Format(dictionary_learning.WEIGHTS, dictionary_learning.read_dictionary_learning),
    "sparsify": Format(sparsify.WEIGHTS, sparsify.read_sparsify),
}
WRITTEN = [word for word, format in FORMATS.items() if format.files]


def read_finished(folder: str) -> FinishedSae:
    """Return the finished SAE in a folder, which may be any fsspec URL.

    The SAE is float32, on the CPU, without gradients. The weights file tells the format. SaeFormatError if the folder holds no SAE, one
    of an unknown kind, or files that do not fit each other.
    """
    bucket = Bucket(folder)
    for format in FORMATS.values():
        if bucket.exists(format.weights):
            return format.read(folder).described()
    raise SaeFormatError(f"{folder} is not a finished SAE: it holds none of {', '.join(f.weights for f in FORMATS.values())}.")


def write_finished(folder: str, word: str, finished: FinishedSae) -> None:
    """Write a finished SAE into a folder, in a format.

    What is known of an older SAE in the folder, its metrics and provenance, is deleted. Raises SaeFormatError, and changes nothing, if
    the format cannot hold the new one.
    """
    format = FORMATS.get(word)
    if not format or not format.files:
        raise InputError(f"format {word!r} is not written; choose from {', '.join(WRITTEN)}.")
    finished.check(folder)
    bucket, files = Bucket(folder), format.files(folder, finished)
    older = SaeLayout("")
    for path in (f"/{list(files)[-1]}", older.metrics, older.provenance):  # first the file that makes an older SAE a finished one
        bucket.remove(path.lstrip("/"))
    for name, data in files.items():
        bucket.write(name, data)


def write_saelens(bucket: Bucket, layout: SaeLayout, finished: FinishedSae, provenance: dict[str, Any]) -> None:
    """Write an SAE into its folder of a bucket, in SAELens' format, with its provenance.

    The provenance binds the weights by a checksum. Values are not checked.
    """
    files = saelens.saelens_files(bucket.place(layout.root), finished)
    bucket.remove(layout.config)  # an older or damaged one: without it the folder is not finished
    bucket.write(layout.provenance, with_checksum(provenance, files[saelens.WEIGHTS]))
    for name, data in files.items():
        bucket.write(f"{layout.root}/{name}", data)


def load_sae(place: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Sae:
    """Return the finished SAE of a folder, ready for raw activations.

    The folder is a local path, an fsspec URL or a Hugging Face id. An id is ``owner/repository``, with a folder after it if the
    repository holds several SAEs; a local folder of that name comes first. What a sweep has measured is in
    ``sae.cfg.metadata["evaluation"]``. SaeFormatError if there is no SAE.
    """
    given = str(place)
    folder = _hub_url(given) or given
    try:
        finished = read_finished(folder)
    except (SaeFormatError, StorageError) as error:
        if folder == given:
            raise
        raise SaeFormatError(f"{given} is not a local folder, and no SAE could be read from Hugging Face: {error}") from error
    if measured := _measured(Bucket(folder)):
        finished = replace(finished, metadata=finished.metadata | {"evaluation": measured}).described()
    return finished.sae.to(device=device, dtype=dtype)


def read_start(place: str) -> Sae:
    """Return the finished SAE that training is to start from.

    Raises InputError, which names the field, if there is none.
    """
    try:
        return load_sae(place)
    except (InputError, StorageError) as error:
        raise InputError(f"train.initial_sae: {error}") from error


def save_sae(sae: Sae, place: str | Path, format: str = "saelens") -> None:
    """Write a finished SAE into a folder, which may be any fsspec URL.

    Raises SaeFormatError, and writes nothing, if the format cannot hold it.
    """
    write_finished(str(place), format, FinishedSae.of(sae))


def _hub_url(place: str) -> str | None:
    """Return the URL of a Hugging Face id; None for a URL, and for a folder that is there."""
    return f"hf://{place}" if _HUB_ID.fullmatch(place) and not Path(place).exists() else None


def _measured(bucket: Bucket) -> dict[str, float]:
    """Return the numbers of the folder's metrics.json, or nothing if there is none of ours."""
    with suppress(CorruptObject, MissingObject):
        result = read_record(bucket, SaeLayout("").metrics.lstrip("/")).get("result", {})
        return {name: value for name, value in result.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {}


__all__ = [
    "FORMATS", "WRITTEN", "FinishedSae", "Format", "load_sae", "read_finished", "read_start", "save_sae", "write_finished", "write_saelens",
]  # fmt: skip
