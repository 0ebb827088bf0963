"""Write local files whole or not at all, also across a power cut.

A file is durable once its bytes, its name in its folder, and the names of that folder and its parents are on the device: each takes an
fsync of its own. A rename or a link comes after the fsync of the bytes, so that no name ever stands for bytes that a power cut can take.
"""

import errno
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "darwin":
    import fcntl

Bytes = bytes | bytearray | memoryview
TEMPORARY = ".tmp-"  # prefix of a file that is still being written, beside its final name
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # of file systems that cannot sync a folder
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}  # of file systems without hard links


class LocalFiles:
    """Write and delete the files below a folder; all paths are absolute."""

    def __init__(self, root: str):
        self._root = Path(root)
        self._named: set[Path] = set()  # folders whose names are durable
        self._made: set[Path] = set()  # folders made here whose names are not durable yet

    def replace(self, full: str, parts: Iterable[Bytes], durable: bool) -> None:
        """Write a file, or replace it.

        A file that is not ``durable`` needs `sync` before anything may rest on it.
        """
        # Something may rest on a file that is there already: a late writer must not put bytes in its place that a power cut can take.
        with self._beside(full, parts, durable or os.path.exists(full)) as temporary:
            os.replace(temporary, full)
        if durable:
            self._sync_names(Path(full).parent)

    def create(self, full: str, data: Bytes) -> None:
        """Write a durable file; raise FileExistsError for an existing one."""
        try:
            with self._beside(full, [data], durable=True) as temporary:
                os.link(temporary, full)
        except FileExistsError:
            self._sync_names(Path(full).parent)  # another writer may not have come so far
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            reason = "commits need hard links, which its file system has not: put the bucket on another one, or into an object store"
            raise OSError(error.errno, reason) from error
        self._sync_names(Path(full).parent)

    def sync(self, paths: Iterable[str]) -> None:
        """Make files durable that were not written so."""
        for full in paths:
            file = os.open(full, os.O_RDONLY)
            try:
                _sync(file)
            finally:
                os.close(file)
        for folder in dict.fromkeys(Path(full).parent for full in paths):
            self._sync_names(folder)

    def remove(self, full: str) -> None:
        """Delete a file for good; raise FileNotFoundError for an absent one."""
        os.unlink(full)
        _sync_folder(Path(full).parent)

    def remove_tree(self, full: str) -> None:
        """Delete a file or a folder with all in it, if it is there."""
        with suppress(FileNotFoundError):
            if os.path.isdir(full) and not os.path.islink(full):
                shutil.rmtree(full)
            else:
                os.unlink(full)

    @contextmanager
    def _beside(self, full: str, parts: Iterable[Bytes], durable: bool) -> Iterator[str]:
        folder = Path(full).parent
        self._make(folder)
        temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}"
        try:
            file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
            try:
                for part in parts:
                    rest = memoryview(part).cast("B")
                    while rest:
                        rest = rest[os.write(file, rest) :]
                if durable:
                    _sync(file)
            finally:
                os.close(file)
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _make(self, folder: Path) -> None:
        """Make a folder and its parents."""
        if folder.is_dir():
            return
        self._make(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        self._made.add(folder)
        self._named.discard(folder)

    def _sync_names(self, folder: Path) -> None:
        """Make the names in a folder durable, and the names of the folder and its parents."""
        _sync_folder(folder)
        while folder not in self._named and (folder in self._made or folder.is_relative_to(self._root)):
            self._named.add(folder)
            self._made.discard(folder)
            folder = folder.parent
            _sync_folder(folder)


def _sync(file: int) -> None:
    if sys.platform == "darwin":  # there fsync leaves the bytes in the drive's cache
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def _sync_folder(folder: Path) -> None:
    try:
        file = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder above the bucket that may not be listed; any folder on Windows
        return
    try:
        _sync(file)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(file)
