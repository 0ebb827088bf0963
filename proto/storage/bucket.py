"""Store objects under any fsspec URL, each written whole or not at all."""

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scopemill.proto import metrics
from scopemill.proto.errors import InputError, MissingObject, StorageError
from scopemill.proto.storage.listing import objects_below
from scopemill.proto.storage.local_files import TEMPORARY, Bytes, LocalFiles
from scopemill.proto.storage.retry import retry

T = TypeVar("T")
PIECE_BYTES = 256 * 1024  # of a local file per read: fits a core's cache
DELETES_AT_ONCE = 16  # requests


class Bucket:
    """Read and write objects by relative path, as ``bucket.read("activations/demo/dataset.json")``.

    A reader never sees half an object: a local file is written under a temporary name and renamed, and S3 shows an object
    when its upload ends. ``create`` is the commit: the bytes of exactly one of several writers are kept. What ``write`` and
    ``create`` have written, and ``remove`` has deleted, stays so after a power cut.

    Every method is idempotent, and retries transient failures (`retry`). A remaining failure is one StorageError that
    names the object.
    """

    def __init__(self, url: str):
        self.url = str(url).rstrip("/")
        if not self.url or self.url.endswith(":"):
            raise InputError(f"bucket {url!r} names no folder: give a folder or a URL such as s3://bucket/prefix")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise InputError(f"bucket {url!r} cannot be opened: {error}") from error
        self._local, self._files = isinstance(self._fs, LocalFileSystem), LocalFiles(self._root)
        if not self._local:  # other processes write here too: a cached listing would be wrong
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self.url,)

    def __repr__(self) -> str:
        return f"Bucket({self.url!r})"

    def place(self, path: str) -> str:
        """Return the full address of an object, for messages and other programs."""
        return f"{self.url}/{path}"

    def read(self, path: str) -> bytes:
        """Return an object's bytes; raise MissingObject for an absent object."""

        def read(full: str) -> bytes:
            data: bytes = self._fs.cat_file(full)
            return data

        return self._do("read", path, read)

    def read_into(self, path: str, buffer: memoryview, see: Callable[[memoryview, int], None] = lambda piece, start: None) -> memoryview:
        """Return the object's bytes: a view of ``buffer`` for a local file, else fresh memory.

        Reading into recycled memory is 20 times faster than into fresh memory. ``see(piece, start)`` gets each piece while
        it is in the processor's cache; a retry starts again at 0. Raises StorageError for an object larger than the buffer.
        """

        def read(full: str) -> memoryview:
            if not self._local:
                data = self._fs.cat_file(full)
                self._check_fits(path, len(data), buffer)
                see(memoryview(data), 0)
                return memoryview(data)
            with open(full, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                self._check_fits(path, size, buffer)
                filled = 0
                while filled < size and (n := file.readinto(buffer[filled : min(filled + PIECE_BYTES, size)])):
                    see(buffer[filled : filled + n], filled)
                    filled += n
                return buffer[:filled]

        return self._do("read", path, read)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop`` of an object, in one request."""

        def read(full: str) -> bytes:
            data: bytes = self._fs.cat_file(full, start=start, end=stop)
            return data

        return self._do("read", path, read)

    def size(self, path: str) -> int | None:
        """Return an object's size in bytes; None for an absent object."""

        def size(full: str) -> int | None:
            return int(self._fs.info(full)["size"]) if self._is_object(full) else None

        return self._do("look for", path, size)

    def versions(self, path: str) -> dict[str, str]:
        """Return, for each object below a folder, what changes whenever the object is written anew.

        One listing gives them all: what was read of an object is good as long as its version stays.
        """
        start = len(self._root.rstrip("/")) + 1
        found = self._do("list", path, lambda full: objects_below(self._fs, full))
        marks = ("ETag", "etag", "LastModified", "mtime", "updated", "ino", "size")
        return {
            full[start:]: "-".join(str(info[mark]) for mark in marks if info.get(mark))
            for full, info in found.items()
            if not PurePosixPath(full).name.startswith(TEMPORARY)
        }

    @property
    def is_local(self) -> bool:
        """Return True if objects are files of this machine, which can be read in parts."""
        return self._local

    def open_local(self, path: str) -> BinaryIO:
        """Open an object of a local bucket as a file."""
        return self._do("read", path, lambda full: open(full, "rb", buffering=0))

    @staticmethod
    def read_at(file: BinaryIO, place: str, start: int, into: memoryview) -> int:
        """Fill ``into`` from byte ``start`` of a file and return the bytes read.

        The bytes are fewer than asked for only at the file's end.
        """
        try:
            filled = read = os.preadv(file.fileno(), [into], start)
            while read and filled < len(into):
                filled += (read := os.preadv(file.fileno(), [into[filled:]], start + filled))
        except OSError as error:
            raise StorageError(f"cannot read {place}: {error.strerror or error}") from error
        return filled

    def write(self, path: str, *parts: Bytes, durable: bool = True) -> None:
        """Write an object, or replace it.

        A local file is written part by part, without a joined copy. A power cut may take an object that is not ``durable``, so
        `sync` has to follow before a record names it.
        """
        self._do("write", path, lambda full: self._put(full, parts, durable))

    def write_file(self, path: str, file: Path) -> None:
        """Write an object from a local file, or replace it.

        The file is never in memory as a whole.
        """

        def write(full: str) -> None:
            if not self._local:
                self._fs.put_file(str(file), full)
                return
            with file.open("rb", buffering=0) as opened:
                self._files.replace(full, iter(lambda: opened.read(PIECE_BYTES), b""), durable=True)

        self._do("write", path, write)

    def sync(self, paths: Iterable[str]) -> None:
        """Make objects durable that were written with ``durable=False``.

        There is no retry: a system that failed to write pages forgets that they are not written, and the next sync would succeed.
        """
        if self._local and (files := list(paths)):
            with self._errors("sync", files[0]):
                self._files.sync([self._full(path) for path in files])

    def create(self, path: str, data: Bytes) -> bool:
        """Write an object unless it exists. Return True if the object holds these bytes.

        The reply to a successful write may be lost, and a retry then finds the object of its own first attempt. So the
        result is True for an existing object with these bytes, whoever wrote it.
        """

        def create(full: str) -> bool:
            try:
                if self._local:
                    self._files.create(full, data)
                else:
                    self._fs.pipe_file(full, bytes(data), mode="create")
            except OSError as error:  # s3fs reports a lost race of If-None-Match as EINVAL
                if not isinstance(error, FileExistsError) and not (error.errno == errno.EINVAL and self._is_object(full)):
                    raise
                return bool(self._fs.cat_file(full) == bytes(data))
            return True

        return self._do("write", path, create)

    def exists(self, path: str) -> bool:
        """Return True if there is an object at the path; a folder is none."""
        return self._do("look for", path, self._is_object)

    def names(self, path: str) -> list[str]:
        """Return the sorted names directly under a folder; empty for an absent folder."""

        def names(full: str) -> list[str]:
            try:
                entries = self._fs.ls(full, detail=False)
            except FileNotFoundError:
                return []
            found = {PurePosixPath(entry.rstrip("/")).name for entry in entries if entry.rstrip("/") != full}
            return sorted(name for name in found if not name.startswith(TEMPORARY))

        return self._do("list", path, names)

    def find(self, path: str, temporary: bool = False) -> list[str]:
        """Return the sorted paths of objects below a folder, or of killed writers' temporary files."""
        start = len(self._root.rstrip("/")) + 1
        found = self._do("list", path, lambda full: objects_below(self._fs, full))
        return sorted(p[start:] for p in found if PurePosixPath(p).name.startswith(TEMPORARY) == temporary)

    def remove(self, path: str) -> None:
        """Delete an object; do nothing if it is absent."""

        def remove(full: str) -> None:
            with suppress(FileNotFoundError):
                self._files.remove(full) if self._local else self._fs.rm_file(full)

        self._do("delete", path, remove)

    def remove_tree(self, path: str) -> None:
        """Delete all objects below a folder; do nothing if there are none."""

        if self._local:
            self._do("delete", path, self._files.remove_tree)
            return
        # fsspec's rm takes a path for a pattern: below a folder `run[1]` it would delete the objects of `run1`.
        objects = self.find(path) + self.find(path, temporary=True)
        with ThreadPoolExecutor(DELETES_AT_ONCE) as threads:
            list(threads.map(self.remove, objects))

    def check_writable(self, commits: bool = False) -> None:
        """Raise StorageError unless an object can be written here, and with ``commits`` also created.

        There is no retry: a wrong URL should fail at once.
        """
        probe = f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with self._errors("write", probe):
                if commits and self._local:
                    self._files.create(self._full(probe), b"")
                else:
                    self._put(self._full(probe), [b""], durable=False)
        except StorageError as error:
            raise StorageError(f"bucket {self.url} cannot be written: {error.__cause__ or error}") from error
        self.remove(probe)

    def _check_fits(self, path: str, size: int, buffer: memoryview) -> None:
        if size > len(buffer):
            raise StorageError(f"{self.place(path)} has {size} bytes, but at most {len(buffer)} are expected")

    def _full(self, path: str) -> str:
        if path.startswith("/") or not path.strip("/") or not {".", ".."}.isdisjoint(path.split("/")):
            raise StorageError(f"{path!r} is not a path inside the bucket {self.url}")
        return f"{self._root.rstrip('/')}/{path}"

    def _is_object(self, full: str) -> bool:
        # fsspec's isfile returns False for every failure: after a moment of throttling, finished work would be done again.
        try:
            return bool(self._fs.info(full)["type"] == "file")
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _put(self, full: str, parts: Iterable[Bytes], durable: bool) -> None:
        if self._local:
            self._files.replace(full, parts, durable)
        else:
            self._fs.pipe_file(full, b"".join(parts))

    def _do(self, verb: str, path: str, attempt: Callable[[str], T]) -> T:
        """Return the attempt's result on the full path, with retries; raise StorageError otherwise."""
        full = self._full(path)
        with self._errors(verb, path):
            return retry(lambda: attempt(full), metrics.STORE_RETRIES.labels(verb).inc)

    @contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and verb == "read":
                raise MissingObject(f"{self.place(path)} is not there") from error
            raise StorageError(f"cannot {verb} {self.place(path)}: {error.strerror or error}") from error
        except Exception as error:
            # Stores raise errors of their client library (botocore's missing credentials, aiohttp's closed connection):
            # callers treat all of them alike.
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot {verb} {self.place(path)}: {type(error).__name__}: {error}") from error
