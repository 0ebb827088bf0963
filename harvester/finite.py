"""Stop a harvest at an activation that is not finite, by its hook and token."""

import numpy as np

from scopemill.harvester.text.packing import Sequences
from scopemill.proto.errors import NotFinite


def check_norms(place: str, hook: str, norms: np.ndarray, block: Sequences, rows: np.ndarray) -> None:
    """Raise NotFinite if a norm (n,) at a hook is a NaN or an infinity.

    ``rows`` (n,) are the places of the norms' tokens in the block.
    """
    wrong = rows[~np.isfinite(norms)]
    if len(wrong):
        token, document, position = (int(label.ravel()[wrong[0]]) for label in (block.tokens, block.document, block.position))
        raise not_finite(place, hook, len(wrong), token, document, position)


def not_finite(place: str, hook: str, count: int, token: int, document: int, position: int) -> NotFinite:
    """Make the error for rows that are not finite, naming the first by its token."""
    return NotFinite(
        f"{place}, {hook}: the activations of {count} tokens hold a NaN or an infinity, first those of token id {token} at position "
        f"{position} of document {document}: no SAE can be trained on them. Check the model's weights, try model.dtype: float32, or take "
        "the document out of the corpus"
    )
