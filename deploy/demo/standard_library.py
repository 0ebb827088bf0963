"""Read the demo's text: the source of Python's own standard library.

Every machine with Python has this text. About a tenth of the files are held out, chosen by a hash of their path, so that the
split is the same on every machine and in every version of Python. The language model in `gemma-2-stdlib/` was never trained on a
held-out file.
"""

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

HELD_OUT_SHARE = 0.1

# Folders that are installed packages, tests, or one large generated file of documentation (`pydoc_data`) rather than the library's code.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "idle_test", "pydoc_data", "test", "tests"}
SKIPPED_PREFIXES = ("config-", "_sysconfigdata")  # written by the build of this one machine, with its folders in them

Document = tuple[str, str]  # (path relative to the library, text)


def library_folder() -> Path:
    """Return the folder of this Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_library(relative_path: str) -> bool:
    """Return True for the library's own modules.

    Returns False for its tests and for other files in the same folder.
    """
    parts = PurePosixPath(relative_path).parts
    return SKIPPED_FOLDERS.isdisjoint(parts) and not any(part.startswith(SKIPPED_PREFIXES) for part in parts)


def is_test_suite(relative_path: str) -> bool:
    """Return True for files of the `test` package, which many distributions leave out."""
    parts = PurePosixPath(relative_path).parts
    return parts[0] == "test" and "__pycache__" not in parts


def path_hash(relative_path: str) -> int:
    """Hash a path to a number in [0, 2**64), the same on every machine.

    The number is the first 8 bytes of the path's SHA-256.
    """
    return int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:8], "big")


def is_held_out(relative_path: str) -> bool:
    """Return True for about one path in ten."""
    return path_hash(relative_path) < HELD_OUT_SHARE * 2**64


def relative_paths(wanted: Callable[[str], bool] = is_library) -> list[str]:
    """List the Python files that `wanted` accepts, as POSIX paths relative to the library, sorted."""
    root = library_folder()
    paths = (path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return sorted(path for path in paths if wanted(path))


def documents(held_out: bool, wanted: Callable[[str], bool] = is_library) -> Iterator[Document]:
    """Read the held-out documents, or all the others, in the order of their paths."""
    for path in relative_paths(wanted):
        if is_held_out(path) == held_out:
            yield path, (library_folder() / path).read_text(encoding="utf-8", errors="replace")


def write_corpus(folder: str | Path) -> None:
    """Write `train.jsonl` and `held_out.jsonl`, one {"path", "text"} per line, unless they exist.

    The lines are in the order of their paths' hashes, so that any prefix is a fair sample of the whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, held_out in (("train.jsonl", False), ("held_out.jsonl", True)):
        if not (folder / name).exists():
            shuffled = sorted(documents(held_out), key=lambda document: path_hash(document[0]))
            lines = (json.dumps({"path": path, "text": text}) + "\n" for path, text in shuffled)
            write_atomically(folder / name, lines)


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write the lines to a file beside `path` and rename it.

    So a reader finds the whole file or none.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    write_corpus(sys.argv[1])
