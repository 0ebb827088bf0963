"""Decide how many sequences at the start of a corpus are kept apart for evaluation."""

from scopemill.deploy.plan.sweep_file import SweepConfig
from scopemill.proto.dataset import committed_identity
from scopemill.proto.errors import InputError
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket


def reserved_sequences(bucket: Bucket, config: SweepConfig) -> int:
    """Return the number of sequences that are never harvested.

    Once the text is packed it is what the text was packed with, so that a later evaluation on other sequences or another corpus touches
    no harvest and no SAE. InputError if the evaluation asks for more sequences than were reserved.
    """
    asked = 0 if config.evaluation.corpus else config.evaluation.sequences
    packing = DatasetLayout(config.dataset).packing
    if not bucket.exists(packing):
        return asked
    kept = committed_identity(bucket, packing).get("reserved_sequences", asked)
    if asked > kept:
        raise InputError(
            f"evaluation.sequences: the text of {config.dataset} was packed with {kept} sequences reserved for evaluation, and {asked} are "
            "asked for: lower evaluation.sequences, name an evaluation.corpus, or harvest another harvest.dataset"
        )
    return int(kept)
