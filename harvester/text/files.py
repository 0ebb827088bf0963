"""Choose the files of a corpus, and count those that are left out."""

from dataclasses import dataclass
from typing import Any

import fsspec

from scopemill.harvester.config import CorpusConfig
from scopemill.harvester.text.compression import ENDINGS
from scopemill.harvester.text.tally import Tally
from scopemill.proto.errors import CorpusError

_OF_FORMAT = {"jsonl": (".jsonl", ".json", ".ndjson"), "parquet": (".parquet",)}  # of the files in a folder; other formats take all


@dataclass(frozen=True)
class CorpusFiles:
    """Hold a corpus' files: their store and their names.

    ``single``: the corpus names one file itself.
    """

    fs: Any
    names: list[str]
    single: bool


def choose_files(corpus: CorpusConfig, tally: Tally) -> CorpusFiles:
    """Return the files of a corpus. Raises CorpusError if there are none.

    A folder gives the files of its format at any depth, a glob the files that it matches. Hidden files, whose name or folder
    begins with a dot, are left out unless the glob spells the dot.
    """
    fs, path = fsspec.core.url_to_fs(corpus.source)
    if fs.isdir(path):
        names = _visible(_plain_files(fs, fs.find(path, detail=True), tally), path, tally)
        names = _of_format(names, corpus.format, tally)
    elif fs.exists(path):  # also where the name has the characters of a glob
        tally.files = 1
        return CorpusFiles(fs, [path], single=True)
    else:
        names = _matching(fs, path, tally) if any(c in path for c in "*?[") else []
    if not names:
        but = f" (left out: {tally.left_out})" if tally.left_out else ""
        raise CorpusError(f"corpus {corpus.source!r} is not there: no {corpus.format} file matches{but}; check its source and format")
    tally.files = len(names)
    return CorpusFiles(fs, names, single=False)


def _matching(fs: Any, pattern: str, tally: Tally) -> list[str]:
    """Return the files that a glob matches."""
    names = _plain_files(fs, fs.glob(pattern, detail=True), tally)
    fixed = pattern[: min(pattern.index(c) for c in "*?[" if c in pattern)].rpartition("/")[0]
    return names if "/." in pattern[len(fixed) :] else _visible(names, fixed, tally)


def _plain_files(fs: Any, found: dict[str, dict[str, Any]], tally: Tally) -> list[str]:
    """Return the names of files and of links to files, sorted."""
    kinds = {name: "file" if info.get("islink") and fs.isfile(name) else info["type"] for name, info in sorted(found.items())}
    tally.leave_out("folders", (name for name, kind in kinds.items() if kind == "directory"))
    tally.leave_out("links to no file, or pipes", (name for name, kind in kinds.items() if kind not in ("file", "directory")))
    return [name for name, kind in kinds.items() if kind == "file"]


def _visible(names: list[str], root: str, tally: Tally) -> list[str]:
    """Return the names that are not hidden below the root, such as .DS_Store, ._x and .git/HEAD."""
    hidden = [name for name in names if "/." in "/" + name.removeprefix(root).lstrip("/")]
    tally.leave_out("hidden files", hidden)
    gone = set(hidden)
    return [name for name in names if name not in gone]


def _of_format(names: list[str], format: str, tally: Tally) -> list[str]:
    """Return the names with an ending of the format, compressed or not."""
    endings = _OF_FORMAT.get(format)
    if endings is None:
        return names
    chosen = [name for name in names if _without_compression(name.lower()).endswith(endings)]
    taken = set(chosen)
    tally.leave_out(f"files that do not end in {' or '.join(endings)}", (name for name in names if name not in taken))
    return chosen


def _without_compression(name: str) -> str:
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
