"""Train SAEs, and read and write finished SAEs in every format."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scopemill.trainer.formats import load_sae
    from scopemill.trainer.sae.base import Sae

__all__ = ["Sae", "load_sae"]
_PLACES = {"Sae": "scopemill.trainer.sae.base", "load_sae": "scopemill.trainer.formats"}


def __getattr__(name: str) -> Any:
    # Imported on demand, so that reading a sweep file does not wait for torch.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
