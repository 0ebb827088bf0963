"""The bucket: a tree of objects under any fsspec URL, each written whole or not at all."""

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scopemill.proto.errors import InputError, MissingObject, StorageError

Bytes = bytes | bytearray | memoryview
PIECE_BYTES = 256 * 1024  # of a local file at once: fits a core's cache


class Bucket:
    """Objects by relative path, as ``bucket.read("activations/demo/dataset.json")``.

    A reader never sees half an object: a local file is written beside its place and renamed, S3 makes an object
    visible when its upload ends. ``create`` is the commit: of several writers exactly one succeeds.
    """

    def __init__(self, url: str):
        self.url = str(url).rstrip("/")
        if not self.url or self.url.endswith(":"):
            raise InputError(f"bucket {url!r} names no place: give a folder or a URL such as s3://bucket/prefix")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise InputError(f"bucket {url!r} is not a place that can be opened: {error}") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        if not self._local:  # other processes write here too: a remembered listing would be wrong
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)

    def __reduce__(self):
        return Bucket, (self.url,)

    def __repr__(self) -> str:
        return f"Bucket({self.url!r})"

    def place(self, path: str) -> str:
        """Where an object lies, for people and for other programs."""
        return f"{self.url}/{path}"

    def read(self, path: str) -> bytes:
        with self._errors("read", path):
            return self._fs.cat_file(self._full(path))

    def read_into(self, path: str, buffer: memoryview, see: Callable[[memoryview], None] = lambda piece: None) -> memoryview:
        """The object's bytes: in ``buffer`` where the store can, else in memory of their own.

        Recycled memory is read into 20 times faster than fresh memory, so a local file goes into the buffer. ``see``
        gets each piece in its turn, while it is still in the processor's cache. StorageError if the object is larger than
        the buffer.
        """
        with self._errors("read", path):
            if not self._local:
                data = self._fs.cat_file(self._full(path))
                self._check_fits(path, len(data), buffer)
                see(memoryview(data))
                return memoryview(data)
            with open(self._full(path), "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                self._check_fits(path, size, buffer)
                filled = 0
                while filled < size and (n := file.readinto(buffer[filled : min(filled + PIECE_BYTES, size)])):
                    see(buffer[filled : filled + n])
                    filled += n
                return buffer[:filled]

    def write(self, path: str, *parts: Bytes) -> None:
        """Write an object, replacing what was there. Parts are joined without a copy where the store can."""
        with self._errors("write", path):
            if self._local:
                with self._beside(path, parts) as temporary:
                    os.replace(temporary, self._full(path))
            else:
                self._fs.pipe_file(self._full(path), b"".join(parts))

    def create(self, path: str, data: Bytes) -> bool:
        """Write an object unless it is there. True for the one writer whose bytes it now holds."""
        with self._errors("write", path):
            try:
                if self._local:
                    with self._beside(path, [data]) as temporary:
                        os.link(temporary, self._full(path))
                else:
                    self._fs.pipe_file(self._full(path), bytes(data), mode="create")
            except FileExistsError:
                return False
            except OSError as error:  # s3fs gives the lost race of If-None-Match as EINVAL
                if error.errno == errno.EINVAL and self.exists(path):
                    return False
                raise
            return True

    def exists(self, path: str) -> bool:
        with self._errors("look for", path):
            return self._fs.isfile(self._full(path))

    def names(self, path: str) -> list[str]:
        """Names directly under a folder, sorted; empty if there is no such folder."""
        with self._errors("list", path):
            try:
                entries = self._fs.ls(self._full(path), detail=False)
            except FileNotFoundError:
                return []
            names = {PurePosixPath(entry.rstrip("/")).name for entry in entries if entry.rstrip("/") != self._full(path)}
            return sorted(name for name in names if not name.startswith(".tmp-"))

    def find(self, path: str) -> list[str]:
        """Every object below a folder, by its path in the bucket, sorted."""
        with self._errors("list", path):
            start = len(self._root.rstrip("/")) + 1
            return sorted(p[start:] for p in self._fs.find(self._full(path)) if "/.tmp-" not in p)

    def remove(self, path: str) -> None:
        """Delete an object; nothing if it is not there."""
        with self._errors("delete", path), suppress(FileNotFoundError):
            self._fs.rm_file(self._full(path))

    def check_writable(self) -> None:
        """StorageError unless an object can be written here."""
        probe = f".tmp-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"")
        except StorageError as error:
            raise StorageError(f"bucket {self.url} cannot be written: {error.__cause__}") from error
        self.remove(probe)

    def _check_fits(self, path: str, size: int, buffer: memoryview) -> None:
        if size > len(buffer):
            raise StorageError(f"{self.place(path)} has {size} bytes where at most {len(buffer)} belong")

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise StorageError(f"{path!r} is not a path inside the bucket {self.url}")
        return f"{self._root.rstrip('/')}/{path}"

    @contextmanager
    def _beside(self, path: str, parts: Iterable[Bytes]) -> Iterator[str]:
        full = Path(self._full(path))
        full.parent.mkdir(parents=True, exist_ok=True)
        temporary = full.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            with open(temporary, "xb", buffering=0) as file:
                for part in parts:
                    rest = memoryview(part).cast("B")
                    while rest:
                        rest = rest[file.write(rest) :]
            yield str(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and verb == "read":
                raise MissingObject(f"{self.place(path)} is not there") from error
            raise StorageError(f"cannot {verb} {self.place(path)}: {error.strerror or error}") from error
        except Exception as error:
            # Stores raise what their client library raises (botocore's missing credentials, aiohttp's closed
            # connection): to our callers each is the same thing.
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot {verb} {self.place(path)}: {type(error).__name__}: {error}") from error
