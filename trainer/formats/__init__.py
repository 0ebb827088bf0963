"""Finished SAEs in files: one module for each format that is read or written, and the one place that knows them all."""

from collections.abc import Callable
from dataclasses import dataclass

from scopemill.proto.errors import InputError, SaeFormatError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import dictionary_learning, gemma_scope, saelens, sparsify
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.sae.base import Sae


@dataclass(frozen=True)
class Format:
    weights: str  # the file in a folder that tells the format
    read: Callable[[str], FinishedSae]
    files: Callable[[str, FinishedSae], dict[str, bytes]] | None = None  # of a place's folder, in the order of writing


FORMATS = {
    "saelens": Format(saelens.WEIGHTS, saelens.read_saelens, saelens.saelens_files),
    "gemma-scope": Format(gemma_scope.WEIGHTS_1, gemma_scope.read_gemma_scope, gemma_scope.gemma_scope_files),
    "gemma-scope-2": Format(gemma_scope.WEIGHTS_2, gemma_scope.read_gemma_scope_2, gemma_scope.gemma_scope_2_files),
    "dictionary-learning": Format(dictionary_learning.WEIGHTS, dictionary_learning.read_dictionary_learning),
    "sparsify": Format(sparsify.WEIGHTS, sparsify.read_sparsify),
}
WRITTEN = [word for word, format in FORMATS.items() if format.files]


def read_finished(folder: str) -> FinishedSae:
    """The finished SAE in a folder (any fsspec URL), for raw activations; float32, on the CPU, no gradients.

    Its format is told by what lies there. SaeFormatError if the folder holds none, one of a kind that is not known, or one
    whose files do not fit each other.
    """
    bucket = Bucket(folder)
    for format in FORMATS.values():
        if bucket.exists(format.weights):
            return format.read(folder)
    raise SaeFormatError(f"{folder} is not a finished SAE: it holds none of {', '.join(f.weights for f in FORMATS.values())}")


def write_finished(folder: str, word: str, finished: FinishedSae) -> None:
    """Write a folder in a format. SaeFormatError, and nothing is written, if the format cannot hold the SAE."""
    format = FORMATS.get(word)
    if not format or not format.files:
        raise InputError(f"format {word!r} is not written: there are {', '.join(WRITTEN)}")
    finished.check(folder)
    bucket, files = Bucket(folder), format.files(folder, finished)
    bucket.remove(list(files)[-1])  # what makes an older SAE there a finished one
    for name, data in files.items():
        bucket.write(name, data)


def write_saelens(bucket: Bucket, root: str, finished: FinishedSae) -> None:
    """What training ends with: the folder ``root`` of a bucket as SAELens has it, whatever the weights have become."""
    for name, data in saelens.saelens_files(bucket.place(root), finished).items():
        bucket.write(f"{root}/{name}", data)


def load_sae(folder: str) -> Sae:
    """The SAE of ``read_finished``."""
    return read_finished(folder).sae


__all__ = ["FORMATS", "WRITTEN", "FinishedSae", "Format", "load_sae", "read_finished", "write_finished", "write_saelens"]
