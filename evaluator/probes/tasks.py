"""Read probing tasks: a folder of ``prompt,target`` files, csv or csv.zst, as sae-probes has them.

A file is a task if its targets are two. Files with more targets are no binary task and are left out.
"""

import csv
import fnmatch
import io
import posixpath
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa

from scopemill.evaluator.config import ProbesConfig
from scopemill.proto.errors import CorpusError

ENDINGS = (".csv", ".csv.zst")
FEWEST = 20  # distinct prompts of each target: fewer leave no test worth the name
TEST_SHARE = 0.3
SEED = 0


@dataclass(frozen=True)
class Task:
    """Hold a binary task's prompts, as many of one target as of the other."""

    name: str
    prompts: tuple[str, ...]
    targets: np.ndarray  # [n], bool: True for the target that sorts last
    is_test: np.ndarray  # [n], bool: the same share of both targets


def load_tasks(config: ProbesConfig) -> list[Task]:
    """Load the folder's tasks that the configuration asks for, by name.

    Raises CorpusError if the folder has no file that matches, or none of the files that match is a binary task.
    """
    tasks = [task for name, url in _files(config) if (task := as_task(name, read_rows(url), config.examples))]
    if not tasks:
        raise CorpusError(
            f"evaluation.probes: no file of {config.source!r} that matches tasks {list(config.tasks)} is a binary task: one needs two "
            f"targets, each with {FEWEST} distinct prompts or more"
        )
    return tasks


def check_tasks(config: ProbesConfig) -> None:
    """Raise CorpusError unless the folder's first matching file has prompts and targets."""
    read_rows(_files(config)[0][1])


def read_rows(url: str) -> list[tuple[str, str]]:
    """Read (prompt, target) of each row.

    Raises CorpusError if the file cannot be read or lacks one of the two columns.
    """
    csv.field_size_limit(sys.maxsize)
    try:
        with fsspec.open(url, "rb") as file:
            data = file.read()
        if url.endswith(".zst"):
            data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
        rows = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""))
        found = [(row["prompt"], row["target"]) for row in rows]
    except KeyError as error:
        raise CorpusError(f"evaluation.probes: {url} has no column {error}: a task is a csv with the columns prompt and target") from error
    except Exception as error:  # stores and decoders raise errors of many kinds
        raise CorpusError(f"evaluation.probes: {url} cannot be read: {error}") from error
    return [(prompt, target) for prompt, target in found if prompt and target]


def as_task(name: str, rows: Sequence[tuple[str, str]], examples: int) -> Task | None:
    """Choose a task's prompts and its test; None if the rows are no binary task.

    Each prompt counts once, and a prompt with both targets not at all. Both targets get the same number of prompts, ``examples``
    together at most.
    """
    targets_of: dict[str, set[str]] = {}
    for prompt, target in rows:
        targets_of.setdefault(prompt, set()).add(target)
    clear = {prompt: next(iter(targets)) for prompt, targets in targets_of.items() if len(targets) == 1}
    names = sorted({target for _, target in rows})
    if len(names) != 2:
        return None
    sides = [[prompt for prompt, target in clear.items() if target == name] for name in names]
    each = min(examples // 2, *map(len, sides))
    if each < FEWEST:
        return None
    generator = np.random.default_rng(SEED)
    chosen = [[side[i] for i in generator.permutation(len(side))[:each]] for side in sides]
    is_test = np.arange(each) < round(TEST_SHARE * each)
    order = generator.permutation(2 * each)
    prompts = np.array(chosen[0] + chosen[1], dtype=object)[order]
    return Task(name, tuple(prompts), np.repeat([False, True], each)[order], np.tile(is_test, 2)[order])


def _files(config: ProbesConfig) -> list[tuple[str, str]]:
    """List name and URL of each file of the folder whose name matches. CorpusError if none does."""
    try:
        fs, path = fsspec.core.url_to_fs(config.source)
        there = sorted(fs.find(path)) if fs.isdir(path) else []
    except Exception as error:  # as above
        raise CorpusError(f"evaluation.probes: {config.source!r} cannot be opened: {error}") from error
    named = [(_name(place), fs.unstrip_protocol(place)) for place in there if place.endswith(ENDINGS)]
    found = [(name, url) for name, url in named if any(fnmatch.fnmatch(name, pattern) for pattern in config.tasks)]
    if not found:
        raise CorpusError(
            f"evaluation.probes: folder {config.source!r} has no csv or csv.zst file that matches tasks {list(config.tasks)}: "
            "check the folder and the patterns"
        )
    return found


def _name(path: str) -> str:
    return posixpath.basename(path).removesuffix(".zst").removesuffix(".csv")
