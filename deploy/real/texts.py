"""Take real text out of sae-probes' labelled data sets, and split it.

Many prompts lie in several data sets, so the split is by unique text: a held-out text is in no training line.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from scopemill.deploy.demo.standard_library import write_atomically
from scopemill.evaluator.probes.tasks import read_rows

MIN_CHARACTERS = 60  # shorter prompts are names and fragments: labels of a task rather than text
HELD_OUT_SHARE = 0.1
_DATA = "sae_probes/data/cleaned_data/"


def unpack_probes(wheel: Path, folder: Path) -> None:
    """Write the wheel's data sets, as they are, into ``folder``: ``prompt,target`` in csv.zst."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(_DATA) and name.endswith(".csv.zst"):
                (folder / Path(name).name).write_bytes(archive.read(name))


def write_texts(probes: Path, train: Path, held_out: Path) -> None:
    """Write every unique prompt of 60 characters or more, as {"text", "dataset"} per line.

    About a tenth is held out, chosen by the text's SHA-256. Lines are in the order of these hashes, so that any prefix is a
    fair sample of the whole. ``dataset`` is the first data set, by name, that has the text.
    """
    dataset_of: dict[str, str] = {}
    for file in sorted(probes.glob("*.csv.zst")):
        for prompt, _ in read_rows(str(file)):
            if len(prompt) >= MIN_CHARACTERS:
                dataset_of.setdefault(prompt, file.name.removesuffix(".csv.zst"))
    ordered = sorted((_digest(text), text) for text in dataset_of)

    def lines(held: bool) -> Iterator[str]:
        for digest, text in ordered:
            if _is_held_out(digest) == held:
                yield json.dumps({"text": text, "dataset": dataset_of[text]}) + "\n"

    write_atomically(held_out, lines(True))
    write_atomically(train, lines(False))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _is_held_out(digest: bytes) -> bool:
    return int.from_bytes(digest[-4:], "big") < HELD_OUT_SHARE * 2**32  # not the bytes that order the lines
