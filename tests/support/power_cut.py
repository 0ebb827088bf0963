"""A local file system that loses at a power cut what was not synced.

`Recording` stands in for `os` in `proto.storage.local_files` and notes each operation. `after_cut` then tells what a device may hold if
the power went after the first n operations: of each folder any of the names that were not synced, of each file any part of the bytes.
"""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Recording:
    """Forward to `os`, and note what changes or syncs files: (operation, paths or number of the file)."""

    log: list[tuple] = field(default_factory=list)
    syncs: bool = True  # False: forget every sync, as code without any would
    _files: dict[int, int | str] = field(default_factory=dict)  # by descriptor: the number of a new file, or a path
    _numbers: dict[str, int] = field(default_factory=dict)

    def __getattr__(self, name: str):
        return getattr(os, name)

    def done(self, what: object) -> None:
        """Note that a call has returned: what it promised must hold from here on."""
        self.log.append(("done", what))

    def open(self, path, flags, mode=0o777) -> int:
        descriptor = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self._numbers[str(path)] = self._files[descriptor] = number = len(self.log)
            self.log.append(("create", str(path), number))
        else:
            self._files[descriptor] = self._numbers.get(str(path), str(path))
        return descriptor

    def write(self, descriptor: int, data) -> int:
        written = os.write(descriptor, data)
        self.log.append(("write", self._files[descriptor], bytes(data[:written])))
        return written

    def fsync(self, descriptor: int) -> None:
        if self.syncs:
            self.log.append(("sync", self._files[descriptor]))

    def close(self, descriptor: int) -> None:
        self._files.pop(descriptor)
        os.close(descriptor)

    def replace(self, source, target) -> None:
        os.replace(source, target)
        self._numbers[str(target)] = self._numbers.pop(str(source))
        self.log.append(("rename", str(source), str(target)))

    def link(self, source, target) -> None:
        os.link(source, target)
        self._numbers[str(target)] = self._numbers[str(source)]
        self.log.append(("link", str(source), str(target)))

    def unlink(self, path) -> None:
        os.unlink(path)
        self._numbers.pop(str(path))
        self.log.append(("unlink", str(path)))

    def mkdir(self, path) -> None:
        os.mkdir(path)
        self.log.append(("mkdir", str(path)))


def after_cut(log: list[tuple], n: int, root: Path, chance: random.Random) -> tuple[dict[str, bytes], list[object]]:
    """Return the files below ``root`` that a device may hold after the first n operations, and what was done by then."""
    contents: dict[int, bytes] = {}
    synced: dict[int, bytes] = {}
    names: dict[str, int | str] = {}  # as a running system sees them: a file's number, or "folder"
    pending: dict[str, list[tuple[str, int | str | None]]] = {}  # by folder: names set or deleted since its last sync
    durable: dict[str, int | str] = {}
    done: list[object] = []

    def set_names(*changes: tuple[str, int | str | None]) -> None:
        for path, value in changes:
            names.pop(path, None) if value is None else names.__setitem__(path, value)
        pending.setdefault(os.path.dirname(changes[0][0]), []).append(changes)

    def settle(changes: tuple[tuple[str, int | str | None], ...]) -> None:
        for path, value in changes:
            durable.pop(path, None) if value is None else durable.__setitem__(path, value)

    for operation in log[:n]:
        match operation:
            case ("done", what):
                done.append(what)
            case ("create", path, number):
                contents[number] = b""
                set_names((path, number))
            case ("write", number, data):
                contents[number] += data
            case ("sync", int(number)):
                synced[number] = contents[number]
            case ("sync", folder):
                for changes in pending.pop(folder, []):
                    settle(changes)
            case ("rename", source, target):
                set_names((target, names[source]), (source, None))
            case ("link", source, target):
                set_names((target, names[source]))
            case ("unlink", path):
                set_names((path, None))
            case ("mkdir", path):
                set_names((path, "folder"))
    for changes in (changes for of_folder in pending.values() for changes in of_folder):
        if chance.random() < 0.5:
            settle(changes)

    def reachable(path: str) -> bool:
        parent = os.path.dirname(path)
        return parent == str(root.parent) or (durable.get(parent) == "folder" and reachable(parent))

    def bytes_of(number: int) -> bytes:
        whole = contents[number]
        if number in synced and len(synced[number]) == len(whole):
            return whole
        kept = max(len(synced.get(number, b"")), chance.choice([0, chance.randint(0, len(whole)), len(whole)]))
        return whole[:kept]

    files = {path: number for path, number in durable.items() if number != "folder" and reachable(path)}
    return {os.path.relpath(path, root): bytes_of(number) for path, number in files.items()}, done
