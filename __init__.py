"""Load, train and save sparse autoencoders (SAEs) of language-model activations."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scopemill.trainer.fit import train_sae
    from scopemill.trainer.formats import load_sae, save_sae
    from scopemill.trainer.listing import list_saes
    from scopemill.trainer.sae.base import Sae

    __version__: str

__all__ = ["Sae", "__version__", "list_saes", "load_sae", "save_sae", "train_sae"]
_MODULES = {
    "Sae": "scopemill.trainer.sae.base",
    "list_saes": "scopemill.trainer.listing",
    "load_sae": "scopemill.trainer.formats",
    "save_sae": "scopemill.trainer.formats",
    "train_sae": "scopemill.trainer.fit",
}


def __getattr__(name: str) -> Any:
    # Imports wait for the first use: torch takes seconds, and a reader of sweep files does not need it.
    if name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
    elif name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("scopemill")
        except PackageNotFoundError:  # imported from a checkout that is not installed
            value = "0+unknown"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
