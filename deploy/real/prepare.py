"""Prepare SmolLM2-135M-Instruct and real text in a local folder, once.

``prepare`` returns the places; what is there already is not made again. ``python -m scopemill.deploy.real.prepare`` also
writes the sweep file of `make real`.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from scopemill.deploy.plan.yaml_text import filled
from scopemill.deploy.real.fetch import LANGUAGE_MODEL, TEXTS, fetch
from scopemill.proto.errors import InputError, ScopemillError

BUCKET = Path("real-bucket")


@dataclass(frozen=True)
class Prepared:
    """Hold the places of the prepared model and texts."""

    folder: Path

    @property
    def named(self) -> dict[str, Path]:
        """Return the places by the names that the sweep file has for them."""
        return {"model": self.model, "train": self.train, "held_out": self.held_out, "probes": self.probes}

    @property
    def model(self) -> Path:
        """Return the Hugging Face folder of the language model."""
        return self.folder / "SmolLM2-135M-Instruct"

    @property
    def probes(self) -> Path:
        """Return the folder of labelled data sets, ``prompt,target`` in csv.zst."""
        return self.folder / "probes"

    @property
    def train(self) -> Path:
        """Return the file of training text, {"text", "dataset"} per line."""
        return self.folder / "train.jsonl"

    @property
    def held_out(self) -> Path:
        """Return the file of held-out text, none of which is in ``train``."""
        return self.folder / "held_out.jsonl"


def prepare(folder: str | Path) -> Prepared:
    """Fetch and convert whatever ``folder`` lacks, and return the places.

    Downloads 138 MB and leaves 690 MB. Raises InputError if package gguf, which reads the model's file, is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError("to convert the language model of `make real`, package gguf is needed: pip install 'scopemill[real]'")
    places = Prepared(Path(folder))
    places.folder.mkdir(parents=True, exist_ok=True)
    _make(places.model, _make_model)
    _make(places.probes, _make_probes)
    if not places.train.exists():  # written last of the two
        from scopemill.deploy.real.texts import write_texts

        write_texts(places.probes, places.train, places.held_out)
    return places


def _make(place: Path, make: Callable[[Path, Path], None]) -> None:
    """Make a folder in a temporary one beside it, and rename it: so it is there whole or not at all."""
    if place.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=place.parent) as work:
        download, made = Path(work) / "download", Path(work) / "made"
        download.mkdir()
        make(download, made)
        made.rename(place)


def _make_model(download: Path, made: Path) -> None:
    from scopemill.deploy.real.language_model import write_language_model  # transformers takes seconds to import

    write_language_model(fetch(LANGUAGE_MODEL, download), made)


def _make_probes(download: Path, made: Path) -> None:
    from scopemill.deploy.real.texts import unpack_probes

    unpack_probes(fetch(TEXTS, download), made)


def write_sweep(bucket: Path = BUCKET) -> Path:
    """Prepare model and text inside the bucket's folder, and write the sweep file there."""
    places = prepare(bucket / "prepared")
    text = (files("scopemill.deploy.real") / "sweep.yaml").read_text("utf-8")
    path = bucket / "sweep.yaml"
    path.write_text(filled(text, {"bucket": bucket, **places.named}), "utf-8")
    return path


if __name__ == "__main__":
    try:
        print(f"prepared: {write_sweep()}")
    except ScopemillError as error:
        sys.exit(f"error: {error}")
