"""Build the API pages from docstrings into a folder: ``python docs/api/build.py build/docs``. A warning fails the build."""

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pdoc

ROOMS = ("proto", "harvester", "activation_server", "trainer", "evaluator", "deploy")


def public_modules() -> Iterator[str]:
    """Yield the names of the package, its rooms and their modules, without private ones and ``__main__``."""
    package = importlib.import_module("scopemill")
    if getattr(package, "__file__", None):
        yield "scopemill"
    for room in ROOMS:
        yield f"scopemill.{room}"
        folders = importlib.import_module(f"scopemill.{room}").__path__
        for module in pkgutil.walk_packages(folders, f"scopemill.{room}."):
            if not any(part.startswith("_") for part in module.name.split(".")):
                yield module.name


def load_lazy_names(module: str) -> None:
    """Put the names that a package imports on first use into the package, where pdoc looks for them."""
    package = importlib.import_module(module)
    for name in getattr(package, "__all__", ()):
        setattr(package, name, getattr(package, name))


def build(folder: Path) -> list[str]:
    """Write the pages and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="pdoc")
        # pdoc finds submodules by itself, but not those of a package with ``__all__``: so each is named, and some come twice.
        warnings.filterwarnings("ignore", message=".*has already been added")
        modules = list(public_modules())
        for module in modules:
            load_lazy_names(module)
        pdoc.render.configure(docformat="markdown", show_source=False)
        pdoc.pdoc(*modules, output_directory=folder)
    print(f"{len(modules)} modules in {folder}/index.html")
    return [str(warning.message) for warning in caught]


if __name__ == "__main__":
    found = build(Path(sys.argv[1]))
    sys.exit("\n".join(found) if found else 0)
