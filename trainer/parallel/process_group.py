"""Processes that train one SAE together: how they find each other, and tensors that go round. Sockets are torch.distributed's.

A group of its own, not torch's global one: a process is in one circle after another, and where tests want that in several at once.
"""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo, ReduceOp, TCPStore

from scopemill.proto.errors import RankLost

JOIN = timedelta(seconds=120)  # for all of a circle to come
# For a tensor to come: the leader may wait long for data. Who dies is known by its closed connection, a lost node by Ray.
PATIENCE = timedelta(days=7)


class Circle:
    """Of ``size`` processes, the one of ``rank`` 0 leads. All call the same methods in the same order; RankLost if one is gone."""

    def __init__(self, store: TCPStore, host: str, rank: int, size: int, device: torch.device):
        self.rank, self.size, self.device = rank, size, device
        make = _nccl if device.type == "cuda" else _gloo
        self._store, self._group = store, _told(lambda: make(store, host, rank, size))

    def __enter__(self) -> "Circle":
        return self

    def __exit__(self, *_) -> None:
        """Whoever still waits for this process learns that it is gone."""
        self._group.abort()
        self._group = self._store = None

    def add_up(self, tensor: torch.Tensor) -> None:
        """In place the sum over all, in one order: every process gets the same bits, in every run."""
        self._wait(lambda group: group.allreduce(tensor, ReduceOp.SUM))

    def leaders(self, tensor: torch.Tensor) -> None:
        """In place what the leader has."""
        self._wait(lambda group: group.broadcast(tensor, 0))

    def of_all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Everybody's, of one shape, by rank."""
        everybodys = [torch.empty_like(tensor) for _ in range(self.size)]
        self._wait(lambda group: group.allgather(everybodys, tensor))
        return everybodys

    def send(self, tensor: torch.Tensor, to: int) -> None:
        self._wait(lambda group: group.send([tensor], to, 0))

    def receive(self, tensor: torch.Tensor, sender: int) -> None:
        self._wait(lambda group: group.recv([tensor], sender, 0))

    def _wait(self, begin: Callable[[Any], Any]) -> None:
        _told(lambda: begin(self._group).wait())


class Meeting:
    """Where a circle's processes find each other: the leader opens it at a port of ``host``, once for each circle."""

    def __init__(self, host: str):
        listening = socket.create_server((host, 0))
        port = listening.getsockname()[1]
        self.address = f"{host}:{port}"
        self._store = TCPStore(host, port, None, True, JOIN, wait_for_workers=False, master_listen_fd=listening.detach())

    def circle(self, size: int, device: torch.device) -> Circle:
        """Once all of them have come."""
        return Circle(self._store, self.address.rpartition(":")[0], 0, size, device)


def join(address: str, host: str, rank: int, size: int, device: torch.device) -> Circle:
    """Come to a meeting from ``host``."""
    place, _, port = address.rpartition(":")
    store = _told(lambda: TCPStore(place, int(port), None, False, JOIN, wait_for_workers=False))
    return Circle(store, host, rank, size, device)


def _gloo(store: TCPStore, host: str, rank: int, size: int) -> ProcessGroupGloo:
    options, interfaces = ProcessGroupGloo._Options(), os.environ.get("GLOO_SOCKET_IFNAME")
    options._timeout = PATIENCE
    create = ProcessGroupGloo.create_device
    options._devices = [create(interface=one) for one in interfaces.split(",")] if interfaces else [create(hostname=host)]
    return ProcessGroupGloo(store, rank, size, options)


def _nccl(store: TCPStore, host: str, rank: int, size: int) -> Any:
    from torch.distributed import ProcessGroupNCCL  # torch for the CPU has none

    options = ProcessGroupNCCL.Options()
    options._timeout = PATIENCE
    return ProcessGroupNCCL(store, rank, size, options)


def _told(work: Callable[[], Any]) -> Any:
    """What it gives; torch's word for a connection that broke, or was never made, as ours."""
    try:
        return work()
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise RankLost(f"a process that holds other latents of this SAE is gone or was never there: {why}") from error
