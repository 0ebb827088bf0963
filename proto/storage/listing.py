"""List the objects below a folder of any fsspec filesystem."""

from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem


def objects_below(fs: Any, folder: str) -> dict[str, dict[str, Any]]:
    """Return what the filesystem says of each object below a folder, by its path.

    A folder that cannot be listed is an error: fsspec's general ``find`` would leave it out, as if it were empty. One that is not there,
    or is deleted meanwhile, has no object.
    """
    if not _finds_generally(fs):
        found: dict[str, dict[str, Any]] = fs.find(folder, detail=True)
        return found
    objects, left = {}, [folder]
    while left:
        listed = left.pop()
        try:
            entries = fs.ls(listed, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for info in entries:
            path = info["name"].rstrip("/")
            if info["type"] != "directory":
                objects[path] = info
            elif path != listed:
                left.append(path)
    return objects


def _finds_generally(fs: Any) -> bool:
    """Return True for a filesystem that has no listing of a whole tree, as object stores have.

    One that wraps another has a ``find`` that is not the general one.
    """
    kind = type(fs)
    return getattr(kind, "find", None) is AbstractFileSystem.find and (
        not isinstance(fs, AsyncFileSystem) or kind._find is AsyncFileSystem._find  # noqa: SLF001
    )
