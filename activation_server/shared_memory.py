"""Share batches in memory between a server and the trainers on its host.

The memory is a memfd, opened through the server's entry in /proc. So it disappears with its last process, however that
process ends; it is limited by the machine's memory, not by the size of /dev/shm; and only the server's user can open it.
Without memfd or /proc, batches go through the socket.

    generations: uint64 per slot | slot 0 | slot 1 | ...      (each part begins at a multiple of 64 bytes)

A slot's generation grows before the slot is refilled. So a trainer that was taken for dead notices that its batch is gone.
"""

import fcntl
import mmap
import os
import secrets
from functools import cache

import numpy as np

from scopemill.proto.wire import Segment

ALIGNMENT = 64


@cache
def this_host() -> str:
    """Return an identity of this host: the boot id and the namespace of process ids.

    It is equal for two processes exactly if each can find the other in /proc; empty if unknown.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class _Layout:
    def __init__(self, slots: int, slot_bytes: int):
        self._first, self._stride, self._size = _aligned(8 * slots), _aligned(slot_bytes), slot_bytes
        self.slots, self.length = slots, self._first + slots * self._stride

    def slot(self, memory: memoryview, place: int) -> memoryview:
        start = self._first + place * self._stride
        return memory[start : start + self._size]


class SharedSlots:
    """Own the server's end; raise OSError or AttributeError on a system without memfd."""

    def __init__(self, slots: int, slot_bytes: int):
        self._layout, token = _Layout(slots, slot_bytes), secrets.token_hex(16)
        self._file = os.memfd_create(_name(token), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._file, self._layout.length)  # only touched pages take memory
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._memory = memoryview(mmap.mmap(self._file, self._layout.length))
        self._generations = np.frombuffer(self._memory, dtype="<u8", count=slots)
        self.segment = Segment(os.getpid(), self._file, token, slots)

    def slot(self, place: int) -> tuple[memoryview, np.ndarray]:
        """Return a slot's memory, and its generation (1,)."""
        return self._layout.slot(self._memory, place), self._generations[place : place + 1]

    def close(self) -> None:
        """Stop others from opening the memory, which lives as long as its views."""
        os.close(self._file)


class SharedSlotsView:
    """Read the slots in a trainer; raise OSError or ValueError for an unreachable segment."""

    def __init__(self, segment: Segment, slot_bytes: int):
        path, name = f"/proc/{segment.process}/fd/{segment.descriptor}", _name(segment.token)
        if os.readlink(path) != f"/memfd:{name} (deleted)":
            raise ValueError(f"{path} is not {name}")
        self._layout = _Layout(segment.slots, slot_bytes)
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._memory = memoryview(mmap.mmap(file, self._layout.length, prot=mmap.PROT_READ))
        finally:
            os.close(file)
        self._generations = np.frombuffer(self._memory, dtype="<u8", count=segment.slots)

    def holds(self, place: int, generation: int) -> bool:
        """Return True while a slot still holds its content of that generation."""
        return place < self._layout.slots and int(self._generations[place]) == generation

    def slot(self, place: int) -> memoryview:
        """Return a slot's memory, read-only."""
        return self._layout.slot(self._memory, place)


def _name(token: str) -> str:
    return f"scopemill-{token}"


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
