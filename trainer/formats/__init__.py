"""Finished SAEs in files: one module for each format that is read or written."""

from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.formats.saelens import read_saelens, write_saelens
from scopemill.trainer.sae import Sae


def load_sae(folder: str) -> Sae:
    """The finished SAE in a folder (any fsspec URL), for raw activations; float32, on the CPU, no gradients.

    SaeFormatError if the folder is not one, is of an architecture that is not known, or does not fit its config.
    """
    return read_saelens(folder).sae


__all__ = ["FinishedSae", "load_sae", "read_saelens", "write_saelens"]
